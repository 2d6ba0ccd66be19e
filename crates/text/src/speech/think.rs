//! `<think>` ... `</think>`, then the answer: Qwen3, DeepSeek-R1 and those after them.
//!
//! A block counts only at the beginning. One newline after `<think>`, one before `</think>` and two after it are
//! syntax; all else is kept.

use super::Said;
use super::markers::{Scan, scan};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
/// White space before `<think>` at most.
const MAX_LEADING: usize = 16;

/// Parts thoughts from the rest of a text.
pub(super) struct Think {
    state: State,
    held: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space yet, or the beginning of `<think>`.
    Opening,
    /// Right after `<think>`.
    Begun,
    Thinking,
    /// So many newlines after `</think>` may still be syntax.
    Closed(u8),
    Answer,
}

impl Think {
    pub(super) fn new(is_thinking: bool) -> Self {
        Self { state: if is_thinking { State::Begun } else { State::Opening }, held: String::new() }
    }

    pub(super) fn is_thinking(&self) -> bool {
        matches!(self.state, State::Begun | State::Thinking)
    }

    /// Takes text; thoughts go into `said`, the rest is appended to `answer`.
    pub(super) fn push(&mut self, text: &str, said: &mut Said, answer: &mut String) {
        if self.state == State::Answer {
            answer.push_str(text);
            return;
        }
        self.held.push_str(text);
        while self.step(said, answer) {}
    }

    /// Whether there may be more to do with what is held.
    fn step(&mut self, said: &mut Said, answer: &mut String) -> bool {
        match self.state {
            State::Opening => {
                let trimmed = self.held.trim_start();
                let leading = self.held.len() - trimmed.len();
                if leading <= MAX_LEADING && trimmed.starts_with(OPEN) {
                    self.held.drain(..leading + OPEN.len());
                    self.state = State::Begun;
                    return true;
                }
                if leading <= MAX_LEADING && OPEN.starts_with(trimmed) {
                    return false;
                }
                self.state = State::Answer;
            }
            State::Begun => {
                let Some(first) = self.held.bytes().next() else { return false };
                if first == b'\n' {
                    self.held.drain(..1);
                }
                self.state = State::Thinking;
            }
            State::Thinking => return self.think(said),
            State::Closed(0) => self.state = State::Answer,
            State::Closed(left) => {
                let Some(first) = self.held.bytes().next() else { return false };
                if first == b'\n' {
                    self.held.drain(..1);
                    self.state = State::Closed(left - 1);
                } else {
                    self.state = State::Answer;
                }
            }
            State::Answer => {
                answer.push_str(&self.held);
                self.held.clear();
                return false;
            }
        }
        true
    }

    fn think(&mut self, said: &mut Said) -> bool {
        match scan(&self.held, CLOSE, true) {
            Scan::Found(at) => {
                said.reasoning.push_str(&self.held[..at]);
                let newline = usize::from(self.held[at..].starts_with('\n'));
                self.held.drain(..at + newline + CLOSE.len());
                self.state = State::Closed(2);
                true
            }
            Scan::Safe(length) => {
                said.reasoning.push_str(&self.held[..length]);
                self.held.drain(..length);
                false
            }
        }
    }

    pub(super) fn finish(&mut self, said: &mut Said, answer: &mut String) {
        let rest = std::mem::take(&mut self.held);
        if self.is_thinking() {
            said.reasoning.push_str(&rest)
        } else {
            answer.push_str(&rest)
        }
        self.state = State::Answer;
    }
}
