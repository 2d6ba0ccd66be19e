//! `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`, among content: Hermes, Qwen2.5, Qwen3.
//!
//! Only calls of functions that the request offers count: a client could answer no other, nor say it back.

use std::sync::Arc;

use super::call_json::CallJson;
use super::markers::{Scan, scan};
use super::{Reader, Said};

const OPEN: &str = "<tool_call>";
const OPEN_AFTER_NEWLINE: &str = "\n<tool_call>";
const CLOSE: &str = "</tool_call>";
/// White space between a call and its closing tag at most.
const MAX_GAP: usize = 16;

pub(super) struct Hermes {
    names: Arc<[String]>,
    state: State,
    held: String,
    calls: usize,
    /// The tag that opened the call, with the newline before it, if there was one.
    open: &'static str,
}

enum State {
    Content,
    /// Right after a call: a newline is syntax.
    Between,
    Call(Box<CallJson>),
    /// The call's object has ended; its tag may follow.
    Closing,
}

impl Hermes {
    pub(super) fn new(names: Arc<[String]>) -> Self {
        Self { names, state: State::Content, held: String::new(), calls: 0, open: OPEN }
    }

    fn step(&mut self, said: &mut Said) -> bool {
        match &mut self.state {
            State::Content => match scan(&self.held, OPEN, true) {
                Scan::Found(at) => {
                    said.content.push_str(&self.held[..at]);
                    self.open = if self.held[at..].starts_with('\n') { OPEN_AFTER_NEWLINE } else { OPEN };
                    self.held.drain(..at + self.open.len());
                    self.state = State::Call(Box::new(CallJson::new(self.calls, false)));
                    true
                }
                Scan::Safe(length) => {
                    said.content.push_str(&self.held[..length]);
                    self.held.drain(..length);
                    false
                }
            },
            State::Between => {
                let Some(first) = self.held.bytes().next() else { return false };
                // With a tag after it, it is the tag's.
                if first == b'\n' {
                    self.held.drain(..1);
                }
                self.state = State::Content;
                true
            }
            State::Call(_) => self.call(said),
            State::Closing => {
                let trimmed = self.held.trim_start();
                let gap = self.held.len() - trimmed.len();
                if gap <= MAX_GAP && trimmed.starts_with(CLOSE) {
                    self.held.drain(..gap + CLOSE.len());
                    self.state = State::Between;
                } else if gap <= MAX_GAP && CLOSE.starts_with(trimmed) {
                    return false;
                } else {
                    self.state = State::Content;
                }
                true
            }
        }
    }

    /// Whether the call has ended.
    fn call(&mut self, said: &mut Said) -> bool {
        let State::Call(call) = &mut self.state else { return false };
        let has_ended = call.take_from(&mut self.held, &self.names, said).is_some();
        if has_ended {
            self.end_call(said);
        }
        has_ended
    }

    /// A call that was not begun is content as it stands.
    fn end_call(&mut self, said: &mut Said) {
        let State::Call(call) = std::mem::replace(&mut self.state, State::Closing) else { return };
        if call.has_begun() {
            self.calls += 1;
        } else {
            said.content.push_str(self.open);
            said.content.push_str(&call.into_held());
            self.state = State::Content;
        }
    }
}

impl Reader for Hermes {
    fn push(&mut self, text: &str, said: &mut Said) {
        self.held.push_str(text);
        while self.step(said) {}
    }

    fn finish(&mut self, said: &mut Said) {
        if matches!(self.state, State::Call(_)) {
            self.end_call(said);
        }
        // What was held as the beginning of a tag; white space before one that never came is syntax.
        let rest = std::mem::take(&mut self.held);
        let is_syntax = matches!(self.state, State::Closing | State::Between) && rest.trim().is_empty();
        if !is_syntax {
            said.content.push_str(&rest);
        }
        self.state = State::Content;
    }
}
