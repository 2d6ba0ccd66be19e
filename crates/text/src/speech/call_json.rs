//! One call written as a JSON object: `{"name": "f", "arguments": {...}}`, read character by character.
//!
//! As soon as the name is known the arguments are passed on as they come. Until then all is kept, so that it can be
//! given back where it turns out to be no call.

use super::Said;

/// Bytes kept at most while it is not known what they are.
const MAX_HELD: usize = 256 * 1024;
const MAX_NAME: usize = 256;

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    More,
    /// The character was the object's last.
    Done,
    /// No call, from this character on, which was not taken. What came before is [`CallJson::into_held`].
    Failed,
}

/// Reads one object.
pub(super) struct CallJson {
    state: State,
    /// All characters so far, until the call has begun.
    held: String,
    name: Option<String>,
    /// Complete, or being collected, while the name is not known.
    arguments: Option<String>,
    key: String,
    index: usize,
    has_begun: bool,
    needs_arguments: bool,
}

enum State {
    Start,
    KeyOrEnd,
    Key(Scanner),
    Colon,
    Value,
    Name(Scanner, String),
    Arguments(Scanner),
    /// Arguments that are a string with JSON in it.
    QuotedArguments(Scanner, String),
    Other(Scanner),
    CommaOrEnd,
}

impl CallJson {
    /// Call number `index` of the choice. With `needs_arguments` an object without them is no call.
    pub(super) fn new(index: usize, needs_arguments: bool) -> Self {
        Self {
            state: State::Start,
            held: String::new(),
            name: None,
            arguments: None,
            key: String::new(),
            index,
            has_begun: false,
            needs_arguments,
        }
    }

    /// Whether the call was told to anyone: then it cannot be taken back.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The text of what is no call.
    pub(super) fn into_held(self) -> String {
        self.held
    }

    /// Takes characters off the front of `text` up to where the call ends, well or not; all of them, and `None`, if it
    /// does not. `names` are the functions'.
    pub(super) fn take_from(&mut self, text: &mut String, names: &[String], said: &mut Said) -> Option<Step> {
        let whole = std::mem::take(text);
        for (at, c) in whole.char_indices() {
            let step = self.push(c, said, &|name| names.iter().any(|known| known == name));
            if step != Step::More {
                let taken = at + if step == Step::Done { c.len_utf8() } else { 0 };
                whole[taken..].clone_into(text);
                return Some(step);
            }
        }
        None
    }

    /// Takes one character. `is_known` tells whether a name is a function's.
    pub(super) fn push(&mut self, c: char, said: &mut Said, is_known: &dyn Fn(&str) -> bool) -> Step {
        if !self.has_begun && self.held.len() > MAX_HELD {
            return Step::Failed;
        }
        let had_begun = self.has_begun;
        let step = self.advance(c, said, is_known);
        if step != Step::Failed && !had_begun && !self.has_begun {
            self.held.push(c);
        }
        if self.has_begun {
            self.held = String::new();
        }
        step
    }

    fn advance(&mut self, c: char, said: &mut Said, is_known: &dyn Fn(&str) -> bool) -> Step {
        match &mut self.state {
            State::Start | State::KeyOrEnd | State::Colon | State::Value | State::CommaOrEnd if c.is_whitespace() => {}
            State::Start if c == '{' => self.state = State::KeyOrEnd,
            State::KeyOrEnd if c == '"' => {
                self.key.clear();
                self.state = State::Key(Scanner::starting(c));
            }
            State::CommaOrEnd if c == ',' => self.state = State::KeyOrEnd,
            State::KeyOrEnd | State::CommaOrEnd if c == '}' => return self.end(said, is_known),
            State::Key(scanner) => {
                if scanner.push(c) == Scanned::Ended {
                    self.state = State::Colon;
                } else if self.key.len() < MAX_NAME {
                    self.key.push(c);
                }
            }
            State::Colon if c == ':' => self.state = State::Value,
            State::Value => return self.begin_value(c, said, is_known),
            State::Name(scanner, text) => {
                let has_ended = scanner.push(c) == Scanned::Ended;
                text.push(c);
                if has_ended {
                    self.name = serde_json::from_str(text).ok();
                    self.state = State::CommaOrEnd;
                    let is_good = self.name.as_deref().is_some_and(|name| !name.is_empty() && is_known(name));
                    return if is_good { Step::More } else { Step::Failed };
                } else if text.len() > MAX_NAME {
                    return Step::Failed;
                }
            }
            State::Arguments(scanner) => {
                let has_ended = scanner.push(c) == Scanned::Ended;
                self.push_argument(c, said);
                if has_ended {
                    self.state = State::CommaOrEnd;
                }
            }
            State::QuotedArguments(scanner, text) => {
                let has_ended = scanner.push(c) == Scanned::Ended;
                text.push(c);
                if has_ended {
                    let Ok(arguments) = serde_json::from_str::<String>(text) else { return Step::Failed };
                    return self.set_arguments(arguments, said, Step::More);
                }
            }
            State::Other(scanner) => match scanner.push(c) {
                Scanned::More => {}
                Scanned::Ended => self.state = State::CommaOrEnd,
                Scanned::EndedBefore => {
                    self.state = State::CommaOrEnd;
                    return self.advance(c, said, is_known);
                }
            },
            _ => return Step::Failed,
        }
        Step::More
    }

    fn begin_value(&mut self, c: char, said: &mut Said, is_known: &dyn Fn(&str) -> bool) -> Step {
        let is_arguments = matches!(self.key.as_str(), "arguments" | "parameters");
        let scanner = Scanner::starting(c);
        match (self.key.as_str(), c) {
            ("name", '"') if self.name.is_none() => self.state = State::Name(scanner, "\"".to_owned()),
            ("name", _) => return Step::Failed,
            _ if is_arguments && (self.arguments.is_some() || self.has_begun) => return Step::Failed,
            (_, '{') if is_arguments => {
                self.state = State::Arguments(scanner);
                match self.name.clone().filter(|name| is_known(name)) {
                    Some(name) => {
                        said.begin_call(self.index, &name);
                        self.has_begun = true;
                    }
                    None => self.arguments = Some(String::new()),
                }
                self.push_argument(c, said);
            }
            (_, '"') if is_arguments => self.state = State::QuotedArguments(scanner, "\"".to_owned()),
            // null, or nothing that arguments can be.
            (_, 'n') if is_arguments => self.state = State::Other(scanner),
            _ if is_arguments => return Step::Failed,
            (_, c) if c == '{' || c == '[' || c == '"' || c == '-' || c.is_ascii_alphanumeric() => {
                self.state = State::Other(scanner);
            }
            _ => return Step::Failed,
        }
        Step::More
    }

    fn push_argument(&mut self, c: char, said: &mut Said) {
        match &mut self.arguments {
            Some(arguments) => arguments.push(c),
            None => said.push_arguments(self.index, c.encode_utf8(&mut [0; 4])),
        }
    }

    /// Arguments that came whole.
    fn set_arguments(&mut self, arguments: String, said: &mut Said, step: Step) -> Step {
        match &self.name {
            Some(name) => {
                said.begin_call(self.index, name);
                said.push_arguments(self.index, &arguments);
                self.has_begun = true;
            }
            None => self.arguments = Some(arguments),
        }
        self.state = State::CommaOrEnd;
        step
    }

    fn end(&mut self, said: &mut Said, is_known: &dyn Fn(&str) -> bool) -> Step {
        if self.has_begun {
            return Step::Done;
        }
        let arguments = self.arguments.take();
        let is_call = self.name.as_deref().is_some_and(is_known) && (arguments.is_some() || !self.needs_arguments);
        if !is_call {
            return Step::Failed;
        }
        self.set_arguments(arguments.unwrap_or_else(|| "{}".to_owned()), said, Step::Done)
    }
}

/// Finds the end of a JSON value. Brackets are counted and not matched: what a value holds is not judged here, and
/// however deep it nests, no more than a number is kept of it.
struct Scanner {
    depth: u32,
    in_string: bool,
    is_escaped: bool,
    is_scalar: bool,
}

#[derive(PartialEq, Eq)]
enum Scanned {
    More,
    /// This character was the last.
    Ended,
    /// The one before was the last.
    EndedBefore,
}

impl Scanner {
    /// Of a value that begins with `c`.
    fn starting(c: char) -> Self {
        let is_container = matches!(c, '{' | '[');
        let in_string = c == '"';
        let is_scalar = !is_container && !in_string;
        Self { depth: u32::from(is_container), in_string, is_escaped: false, is_scalar }
    }

    fn push(&mut self, c: char) -> Scanned {
        if self.is_scalar {
            let goes_on = c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-');
            return if goes_on { Scanned::More } else { Scanned::EndedBefore };
        }
        if self.in_string {
            match c {
                _ if self.is_escaped => self.is_escaped = false,
                '\\' => self.is_escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
            return if !self.in_string && self.depth == 0 { Scanned::Ended } else { Scanned::More };
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth = self.depth.saturating_add(1),
            '}' | ']' => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 { Scanned::Ended } else { Scanned::More }
    }
}
