//! Calls that stand where the answer would, with nothing but their own shape to tell them by: a JSON object (Llama 3),
//! a Python list of calls (Llama 4), or either in a code fence (Gemma 3).
//!
//! Since an answer may look alike, only calls of functions that the request offers count.

use std::sync::Arc;

use super::call_json::{CallJson, Step};
use super::markers::{Scan, scan};
use super::{Reader, Said, python};

/// White space before a call at most; more is an answer's.
const MAX_GAP: usize = 16;
/// Bytes of one Python call at most.
const MAX_CALL: usize = 256 * 1024;
/// Control tokens around calls, which no answer shows.
const MARKS: [&str; 3] = ["<|python_tag|>", "<|python_start|>", "<|python_end|>"];
const FENCE: &str = "```";
/// What a fence with calls in it is called.
const FENCE_NAMES: [&str; 4] = ["tool_code\n", "tool_call\n", "json\n", "python\n"];

/// The shapes that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shapes {
    /// `[f(a=1)]`
    pub(super) python: bool,
    /// Either shape in a fence, anywhere in the text.
    pub(super) fences: bool,
}

pub(super) struct Leading {
    shapes: Shapes,
    names: Arc<[String]>,
    state: State,
    held: String,
    /// Taken as syntax of a call that may yet turn out to be none.
    syntax: String,
    in_list: bool,
    in_fence: bool,
    calls: usize,
}

enum State {
    /// A call may begin.
    Opening,
    Json(Box<CallJson>),
    /// Of the call so far: bytes, brackets open, and the quote that a string must end with.
    Python {
        depth: u32,
        quote: Option<char>,
        is_escaped: bool,
        at: usize,
    },
    /// After a call.
    Between,
    Content,
    /// After a fence: its name.
    Fence,
}

impl Leading {
    pub(super) fn new(shapes: Shapes, names: Arc<[String]>) -> Self {
        let (held, syntax) = (String::new(), String::new());
        Self { shapes, names, state: State::Opening, held, syntax, in_list: false, in_fence: false, calls: 0 }
    }

    /// Whether there may be more to do with what is held.
    fn step(&mut self, said: &mut Said) -> bool {
        match self.state {
            State::Opening => self.open(said),
            State::Json(_) => self.json(said),
            State::Python { .. } => self.python(said),
            State::Between => self.between(),
            State::Content => self.content(said),
            State::Fence => self.fence(said),
        }
    }

    /// Moves the first `length` held bytes to the syntax.
    fn take_syntax(&mut self, length: usize) {
        self.syntax.extend(self.held.drain(..length));
    }

    /// It was no call: what was taken for one is content.
    fn give_up(&mut self, said: &mut Said) -> bool {
        said.content.push_str(&std::mem::take(&mut self.syntax));
        (self.in_list, self.in_fence) = (false, false);
        self.state = State::Content;
        true
    }

    /// As [`Self::give_up`], with the first `length` held bytes: what was looked at once is not looked at again, or a
    /// text of calls that are none would cost the square of its length.
    fn give_up_held(&mut self, length: usize, said: &mut Said) -> bool {
        self.take_syntax(length);
        self.give_up(said)
    }

    /// A control token that the held text begins with is dropped. `None`: it may be one yet.
    fn drop_mark(&mut self) -> Option<bool> {
        if let Some(mark) = MARKS.iter().find(|mark| self.held.starts_with(**mark)) {
            self.held.drain(..mark.len());
            return Some(true);
        }
        let may_be = !self.held.is_empty() && MARKS.iter().any(|mark| mark.starts_with(self.held.as_str()));
        if may_be { None } else { Some(false) }
    }

    fn open(&mut self, said: &mut Said) -> bool {
        match self.drop_mark() {
            None => return false,
            Some(true) => return true,
            Some(false) => {}
        }
        let Some(first) = self.held.chars().next() else { return false };
        let gap = self.syntax.len() - self.syntax.trim_end().len();
        match first {
            c if c.is_whitespace() && gap < MAX_GAP => self.take_syntax(c.len_utf8()),
            '{' => self.state = State::Json(Box::new(CallJson::new(self.calls, true))),
            '[' if !self.in_list => {
                self.in_list = true;
                self.take_syntax(1);
            }
            c if python::is_name_char(c) && self.shapes.python && (self.in_list || self.in_fence) => {
                self.state = State::Python { depth: 0, quote: None, is_escaped: false, at: 0 };
            }
            _ => return self.give_up(said),
        }
        true
    }

    fn json(&mut self, said: &mut Said) -> bool {
        let State::Json(call) = &mut self.state else { return false };
        match call.take_from(&mut self.held, &self.names, said) {
            Some(step) => self.end_json(step, said),
            None => false,
        }
    }

    fn end_json(&mut self, step: Step, said: &mut Said) -> bool {
        let State::Json(call) = std::mem::replace(&mut self.state, State::Between) else { return false };
        if !call.has_begun() {
            self.syntax.push_str(&call.into_held());
            return self.give_up(said);
        }
        self.calls += 1;
        self.syntax.clear();
        if step == Step::Failed {
            self.state = State::Content;
        }
        true
    }

    /// Reads on to the bracket that ends the call.
    fn python(&mut self, said: &mut Said) -> bool {
        let State::Python { depth, quote, is_escaped, at } = &mut self.state else { return false };
        while let Some(c) = self.held[*at..].chars().next() {
            let position = *at;
            *at += c.len_utf8();
            match (*quote, c) {
                (Some(_), _) if *is_escaped => *is_escaped = false,
                (Some(_), '\\') => *is_escaped = true,
                (Some(open), c) if c == open => *quote = None,
                (Some(_), _) => {}
                (None, '"' | '\'') if *depth > 0 => *quote = Some(c),
                (None, '(') if *depth == 0 => {
                    let name = self.held[..position].trim();
                    if name != "print" && !self.names.iter().any(|known| known == name) {
                        return self.give_up_held(position, said);
                    }
                    *depth = 1;
                }
                (None, '(' | '[' | '{') if *depth > 0 => *depth = depth.saturating_add(1),
                (None, ')' | ']' | '}') if *depth > 1 => *depth -= 1,
                (None, ')') if *depth == 1 => {
                    let end = *at;
                    return self.end_python(end, said);
                }
                (None, c) if *depth == 0 && !python::is_name_char(c) => return self.give_up_held(position, said),
                _ => {}
            }
            if *at > MAX_CALL {
                let examined = *at;
                return self.give_up_held(examined, said);
            }
        }
        false
    }

    fn end_python(&mut self, end: usize, said: &mut Said) -> bool {
        let call = python::call(&self.held[..end]).filter(|(name, _)| self.names.contains(name));
        let Some((name, arguments)) = call else { return self.give_up_held(end, said) };
        said.begin_call(self.calls, &name);
        said.push_arguments(self.calls, &arguments);
        self.calls += 1;
        self.held.drain(..end);
        self.syntax.clear();
        self.state = State::Between;
        true
    }

    /// Commas and semicolons lead to another call, a bracket or a fence ends them.
    fn between(&mut self) -> bool {
        match self.drop_mark() {
            None => return false,
            Some(true) => return true,
            Some(false) => {}
        }
        let Some(first) = self.held.chars().next() else { return false };
        let gap = self.syntax.len();
        match first {
            c if c.is_whitespace() && gap < MAX_GAP => self.take_syntax(c.len_utf8()),
            ',' | ';' => {
                self.take_syntax(1);
                self.state = State::Opening;
            }
            ']' if self.in_list => {
                self.in_list = false;
                self.held.drain(..1);
            }
            '{' => self.state = State::Opening,
            c if self.in_fence && python::is_name_char(c) => self.state = State::Opening,
            '`' if self.in_fence && FENCE.starts_with(self.held.as_str()) && self.held.len() < 3 => return false,
            '`' if self.in_fence && self.held.starts_with(FENCE) => {
                self.in_fence = false;
                self.held.drain(..FENCE.len());
            }
            _ => {
                // White space after a call is no answer.
                self.syntax.clear();
                self.state = State::Content;
            }
        }
        true
    }

    fn content(&mut self, said: &mut Said) -> bool {
        if !self.shapes.fences {
            said.content.push_str(&std::mem::take(&mut self.held));
            return false;
        }
        let (length, is_found) = match scan(&self.held, FENCE, false) {
            Scan::Found(at) => (at, true),
            Scan::Safe(length) => (length, false),
        };
        said.content.push_str(&self.held[..length]);
        self.held.drain(..length);
        if is_found {
            self.take_syntax(FENCE.len());
            self.state = State::Fence;
        }
        is_found
    }

    fn fence(&mut self, said: &mut Said) -> bool {
        if let Some(name) = FENCE_NAMES.iter().find(|name| self.held.starts_with(**name)) {
            self.take_syntax(name.len());
            self.in_fence = true;
            self.state = State::Opening;
            return true;
        }
        if FENCE_NAMES.iter().any(|name| name.starts_with(self.held.as_str())) {
            return false;
        }
        self.give_up(said)
    }
}

impl Reader for Leading {
    fn push(&mut self, text: &str, said: &mut Said) {
        self.held.push_str(text);
        while self.step(said) {}
    }

    fn finish(&mut self, said: &mut Said) {
        match self.state {
            State::Json(_) => {
                self.end_json(Step::Failed, said);
            }
            State::Between if self.held.is_empty() => self.syntax.clear(),
            _ => {}
        }
        self.give_up(said);
        said.content.push_str(&std::mem::take(&mut self.held));
    }
}
