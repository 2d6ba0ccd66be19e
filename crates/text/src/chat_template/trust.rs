//! Keeps the control tokens that a template writes apart from text of the request that only reads like them.
//!
//! The rule for nearly all templates is [`Trust::MarkedTemplate`]: in the template's source, every control token is
//! preceded by a mark, a code point that no string of the request can contain. In the rendered text a control token
//! is one if it is marked. Whatever a template does with the request's strings, no mark comes of it. Literals that
//! are only compared with (`'</think>' in content`) stay unmarked, so that they compare equal.
//!
//! A few templates make control tokens out of pieces, which a mark in the source misses. For those, which a trial at
//! load tells, [`Trust::EscapedRequest`] turns the rule around: all control tokens in the rendered text count, and
//! in the request's strings a break is inserted wherever one is spelled, begins at the end or ends at the beginning.

use minijinja::Value;

use crate::TextError;
use crate::control_tokens::{ControlToken, ControlTokens};

/// Who is told apart from whom, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trust {
    MarkedTemplate,
    EscapedRequest,
}

// Noncharacters, which Unicode reserves for a program's own use.
const MARK: char = '\u{FDD0}';
const BREAK: char = '\u{FDD1}';
/// With a digit after it stands for one of the three in a string of the request.
const ESCAPE: char = '\u{FDD2}';

/// Roles that no template gives a control token's name by accident.
const KNOWN_ROLES: &[&str] = &["system", "developer", "user", "assistant", "tool", "function"];

/// The template's source with its control tokens marked, and without what Jinja extensions of Hugging Face add.
pub(super) fn prepare_source(source: &str, control: &ControlTokens, trust: Trust) -> Result<String, TextError> {
    if source.contains([MARK, BREAK, ESCAPE]) {
        return Err(TextError::TemplateSyntax("it contains noncharacters (U+FDD0 to U+FDD2)".to_owned()));
    }
    let mut prepared = String::with_capacity(source.len() + 64);
    for stretch in stretches(source) {
        match stretch {
            Stretch::Output(text) if trust == Trust::MarkedTemplate => mark(text, control, &mut prepared),
            Stretch::Output(text) | Stretch::Other(text) => prepared.push_str(text),
            Stretch::Tag(text) => match text.trim_matches(['-', '+', ' ', '\n', '\t', '\r']) {
                // Marks what an assistant generated, for training; here it is only a block.
                name @ ("generation" | "endgeneration") => {
                    prepared.push_str(&text.replace(name, if name == "generation" { "if true" } else { "endif" }));
                }
                _ => prepared.push_str(text),
            },
        }
    }
    Ok(prepared)
}

/// A variable that stands for a control token.
pub(super) fn prepare_variable(text: &str, control: &ControlTokens, trust: Trust) -> String {
    let mut marked = String::new();
    match trust {
        Trust::MarkedTemplate => mark(text, control, &mut marked),
        Trust::EscapedRequest => marked.push_str(text),
    }
    marked
}

fn mark(text: &str, control: &ControlTokens, out: &mut String) {
    let mut rest = 0;
    for range in control.ranges(text) {
        out.push_str(&text[rest..range.start]);
        out.push(MARK);
        rest = range.start;
    }
    out.push_str(&text[rest..]);
}

/// A stretch of template source.
enum Stretch<'a> {
    /// Raw text, or a string literal's inside: it may come out as it stands.
    Output(&'a str),
    /// A whole tag's inside, where it has no string literals.
    Tag(&'a str),
    /// Comments, expressions, compared literals.
    Other(&'a str),
}

/// Cuts template source at its delimiters and string literals.
fn stretches(source: &str) -> Vec<Stretch<'_>> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(open) = rest.find("{{").into_iter().chain(rest.find("{%")).chain(rest.find("{#")).min() {
        found.push(Stretch::Output(&rest[..open]));
        let (inside, close) = match rest.as_bytes()[open + 1] {
            b'#' => {
                let close = rest[open..].find("#}").map_or(rest.len(), |at| open + at + 2);
                found.push(Stretch::Other(&rest[open..close]));
                rest = &rest[close..];
                continue;
            }
            b'{' => (open + 2, "}}"),
            _ => (open + 2, "%}"),
        };
        found.push(Stretch::Other(&rest[open..inside]));
        let length = expression(&rest[inside..], close, &mut found);
        rest = &rest[inside + length..];
    }
    found.push(Stretch::Output(rest));
    found
}

/// Cuts the inside of a tag or an expression, up to `close`, and returns its length.
fn expression<'a>(source: &'a str, close: &str, found: &mut Vec<Stretch<'a>>) -> usize {
    let bytes = source.as_bytes();
    let (mut at, mut rest) = (0, 0);
    while at < bytes.len() && !source[at..].starts_with(close) {
        let quote = bytes[at];
        if quote != b'"' && quote != b'\'' {
            at += source[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let end = literal_end(bytes, at);
        let literal = &source[at + 1..end];
        found.push(Stretch::Other(&source[rest..=at]));
        let is_compared = is_comparison(&source[..at], source.get(end + 1..).unwrap_or(""));
        found.push(if is_compared { Stretch::Other(literal) } else { Stretch::Output(literal) });
        rest = end;
        at = (end + 1).min(bytes.len());
    }
    found.push(if rest == 0 { Stretch::Tag(&source[..at]) } else { Stretch::Other(&source[rest..at]) });
    at
}

/// The index of the quote that ends the literal that begins at `start`.
fn literal_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != bytes[start] {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}

/// Whether a string literal between `before` and `after` is looked for, and never comes out.
fn is_comparison(before: &str, after: &str) -> bool {
    const SEARCHES: &[&str] = &[
        "split",
        "rsplit",
        "startswith",
        "endswith",
        "replace",
        "find",
        "rfind",
        "count",
        "strip",
        "lstrip",
        "rstrip",
    ];
    let (before, after) = (before.trim_end(), after.trim_start());
    let is_word_end = |text: &str, word: &str| {
        text.strip_suffix(word).is_some_and(|rest| !rest.ends_with(|c: char| c.is_alphanumeric() || c == '_'))
    };
    before.ends_with("==")
        || before.ends_with("!=")
        || after.starts_with("==")
        || after.starts_with("!=")
        || is_word_end(before, "in")
        || after.starts_with("in ")
        || after.starts_with("not in ")
        || before.strip_suffix('(').is_some_and(|call| {
            let call = call.trim_end_matches('(').trim_end();
            SEARCHES.iter().any(|search| is_word_end(call, search))
        })
}

/// A string of the request, so that a template can do what it likes with it.
pub(super) fn untrusted(text: &str, control: &ControlTokens, trust: Trust) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            MARK => safe.extend([ESCAPE, '0']),
            BREAK => safe.extend([ESCAPE, '1']),
            ESCAPE => safe.extend([ESCAPE, '2']),
            other => safe.push(other),
        }
    }
    if trust == Trust::MarkedTemplate { safe } else { with_breaks(&safe, control) }
}

/// As [`untrusted`], for a message's role, which templates write between the halves of a control token.
pub(super) fn untrusted_role(role: &str, control: &ControlTokens, trust: Trust) -> String {
    let mut safe = untrusted(role, control, trust);
    if trust == Trust::EscapedRequest && !KNOWN_ROLES.contains(&role) {
        safe.push(BREAK);
    }
    safe
}

/// Breaks every control token in `text`, in any case, and those that it could be an end of.
fn with_breaks(text: &str, control: &ControlTokens) -> String {
    let folded = text.to_ascii_lowercase();
    let lowered: Vec<String> = control.iter().map(|token| token.text.to_ascii_lowercase()).collect();
    let mut breaks = Vec::new();
    for token in &lowered {
        let after_first = token.chars().next().map_or(0, char::len_utf8);
        breaks.extend(folded.match_indices(token.as_str()).map(|(at, _)| at + after_first));
        let (head, tail) = (folded.trim_start(), folded.trim_end());
        let cuts = || token.char_indices().skip(1).map(|(at, _)| at);
        if cuts().any(|cut| tail.ends_with(&token[..cut])) {
            breaks.push(tail.len());
        }
        if cuts().any(|cut| head.starts_with(&token[cut..])) {
            breaks.push(folded.len() - head.len());
        }
    }
    breaks.sort_unstable();
    breaks.dedup();
    let mut broken = String::with_capacity(text.len() + breaks.len() * BREAK.len_utf8());
    let mut rest = 0;
    for at in breaks {
        broken.push_str(&text[rest..at]);
        broken.push(BREAK);
        rest = at;
    }
    broken.push_str(&text[rest..]);
    broken
}

/// A rendered conversation, in which the template's control tokens are still told apart from the request's text.
#[derive(Clone, Debug)]
pub struct RenderedChat {
    text: String,
    trust: Trust,
}

/// A stretch of a rendered conversation.
pub(crate) enum Piece<'a> {
    Control(&'a ControlToken),
    Text(String),
}

impl<'a> Piece<'a> {
    pub(crate) fn control(&self) -> Option<&'a ControlToken> {
        match self {
            Self::Control(token) => Some(token),
            Self::Text(_) => None,
        }
    }
}

impl RenderedChat {
    pub(super) fn new(text: String, trust: Trust) -> Self {
        Self { text, trust }
    }

    /// The prompt as text, in which control tokens and text that reads like them look the same.
    pub fn text(&self) -> String {
        clean(&self.text)
    }

    /// Goes on with our own text, whose control tokens are some.
    pub(crate) fn push(&mut self, text: &str, control: &ControlTokens) {
        self.text.push_str(&prepare_variable(text, control, self.trust));
    }

    /// The prompt up to the end of the last `content` in it.
    pub(super) fn cut_after(mut self, content: &str) -> Option<Self> {
        let content = content.trim();
        let at = self.text.rfind(content)?;
        self.text.truncate(at + content.len());
        Some(self)
    }

    pub(crate) fn pieces<'a>(&self, control: &'a ControlTokens) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut rest = 0;
        let mut cut = |start: usize, after_mark: usize, token: &'a ControlToken| {
            let text = clean(&self.text[rest..start]);
            if !text.is_empty() {
                pieces.push(Piece::Text(text));
            }
            pieces.push(Piece::Control(token));
            rest = after_mark + token.text.len();
        };
        match self.trust {
            Trust::MarkedTemplate => {
                for (at, mark) in self.text.match_indices(MARK) {
                    let after = at + mark.len();
                    if let Some(token) = control.at_start(&self.text[after..]) {
                        cut(at, after, token);
                    }
                }
            }
            Trust::EscapedRequest => {
                for range in control.ranges(&self.text) {
                    if let Some(token) = control.at_start(&self.text[range.clone()]) {
                        cut(range.start, range.start, token);
                    }
                }
            }
        }
        let text = clean(&self.text[rest..]);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        pieces
    }
}

/// The text without this room's own code points, and with those of the request back in place.
pub(super) fn clean(text: &str) -> String {
    if !text.contains([MARK, BREAK, ESCAPE]) {
        return text.to_owned();
    }
    let mut cleaned = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            MARK | BREAK => {}
            ESCAPE => {
                let original = match chars.peek() {
                    Some('0') => MARK,
                    Some('1') => BREAK,
                    Some('2') => ESCAPE,
                    _ => continue,
                };
                cleaned.push(original);
                chars.next();
            }
            other => cleaned.push(other),
        }
    }
    cleaned
}

/// Whether `c` is this room's own, which ASCII-only output must not spell out as an escape.
pub(super) fn is_own(c: char) -> bool {
    matches!(c, MARK | BREAK | ESCAPE)
}

/// A string of the request as a template's value.
pub(super) fn untrusted_value(text: &str, control: &ControlTokens, trust: Trust) -> Value {
    Value::from(untrusted(text, control, trust))
}
