//! Ids to text as they come, one sequence at a time.
//!
//! What was appended never changes afterwards: a character whose bytes are spread over several tokens waits for its
//! last byte, and text that may be the beginning of a stop string waits until it is not.

use plimsoll_core::TokenId;

use crate::Tokenizer;
use crate::stop_strings::{StopMatcher, StopStrings};

/// One sequence's way from ids to text. All chunks together are [`Tokenizer::decode`] of all ids, up to the stop
/// string where there was one.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// The next byte is the text's first, and a space there is not part of it.
    strips_space: bool,
    partial: PartialChar,
    stops: Option<StopMatcher>,
    stopped: Option<usize>,
    decoded: String,
}

impl Detokenizer {
    /// Of the vocabulary of `tokenizer`, leaving control tokens out if `skip_special`, and looking for `stops`.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool, stops: &StopStrings) -> Self {
        Self {
            skip_special,
            strips_space: tokenizer.strips_first_space(),
            tokenizer: tokenizer.clone(),
            partial: PartialChar::default(),
            stops: stops.matcher(),
            stopped: None,
            decoded: String::new(),
        }
    }

    /// Keeps a leading space: the text goes on from a prompt's last word.
    pub fn continuing(mut self) -> Self {
        self.strips_space = false;
        self
    }

    /// Appends to `out` the text that `token` completes. Returns the index of the stop string that it completes, if
    /// it does; `out` then ends before the stop string (or after it, as [`StopStrings`] says), and further tokens
    /// add nothing.
    pub fn push(&mut self, token: TokenId, out: &mut String) -> Option<usize> {
        if self.stopped.is_some() || (self.skip_special && self.tokenizer.is_special(token)) {
            return self.stopped;
        }
        let mut bytes = self.tokenizer.token_bytes(token);
        if self.strips_space && !bytes.is_empty() {
            self.strips_space = false;
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        match &mut self.stops {
            None => self.partial.push(bytes, out),
            Some(stops) => {
                self.decoded.clear();
                self.partial.push(bytes, &mut self.decoded);
                self.stopped = stops.push(&self.decoded, out);
            }
        }
        self.stopped
    }

    /// Appends what was held back: the generation ended without a stop string. An unfinished character becomes
    /// U+FFFD, which may itself complete a stop string.
    pub fn finish(&mut self, out: &mut String) -> Option<usize> {
        if self.stopped.is_some() {
            return self.stopped;
        }
        let Some(stops) = &mut self.stops else {
            self.partial.finish(out);
            return None;
        };
        self.decoded.clear();
        self.partial.finish(&mut self.decoded);
        self.stopped = stops.push(&self.decoded, out);
        if self.stopped.is_none() {
            stops.finish(out);
        }
        self.stopped
    }

    /// Whether text is waiting for more tokens.
    pub fn holds_text(&self) -> bool {
        self.partial.length > 0 || self.stops.as_ref().is_some_and(StopMatcher::holds_text)
    }
}

/// The bytes of a character that is not complete yet. Never more than three.
#[derive(Default)]
struct PartialChar {
    bytes: [u8; 4],
    length: usize,
}

impl PartialChar {
    /// Appends the characters that `bytes` complete. Bytes that can never be UTF-8 become U+FFFD, as in
    /// [`String::from_utf8_lossy`] of the whole.
    fn push(&mut self, bytes: &[u8], out: &mut String) {
        let mut rest = bytes;
        while self.length > 0 && !rest.is_empty() {
            self.bytes[self.length] = rest[0];
            match std::str::from_utf8(&self.bytes[..=self.length]) {
                Ok(character) => {
                    out.push_str(character);
                    self.length = 0;
                    rest = &rest[1..];
                }
                Err(e) if e.error_len().is_none() => {
                    self.length += 1;
                    rest = &rest[1..];
                }
                Err(_) => self.finish(out),
            }
        }
        while !rest.is_empty() {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    return;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("checked just now"));
                    match e.error_len() {
                        Some(length) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            rest = &after[length..];
                        }
                        None => {
                            self.bytes[..after.len()].copy_from_slice(after);
                            self.length = after.len();
                            return;
                        }
                    }
                }
            }
        }
    }

    fn finish(&mut self, out: &mut String) {
        if self.length > 0 {
            out.push(char::REPLACEMENT_CHARACTER);
            self.length = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pushed(chunks: &[&[u8]]) -> Vec<String> {
        let mut partial = PartialChar::default();
        let mut texts: Vec<String> = chunks
            .iter()
            .map(|chunk| {
                let mut text = String::new();
                partial.push(chunk, &mut text);
                text
            })
            .collect();
        let mut last = String::new();
        partial.finish(&mut last);
        texts.push(last);
        texts
    }

    #[test]
    fn a_character_waits_for_its_last_byte() {
        let crab = "🦀".as_bytes();
        assert_eq!(pushed(&[b"a", &crab[..1], &crab[1..3], &crab[3..]]), ["a", "", "", "🦀", ""]);
        assert_eq!(pushed(&[&crab[..3], b"b"]), ["", "\u{FFFD}b", ""]);
        assert_eq!(pushed(&[&crab[..2]]), ["", "\u{FFFD}"]);
    }

    #[test]
    fn bytes_that_are_no_character_are_replaced_as_in_the_whole() {
        assert_eq!(pushed(&[b"\xFFa\xC3"]), ["\u{FFFD}a", "\u{FFFD}"]);
        assert_eq!(pushed(&[b"\xE2", b"\xE2\x82", b"\xAC"]), ["", "\u{FFFD}", "€", ""]);
    }
}
