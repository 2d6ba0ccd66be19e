//! Finds control tokens in text that is allowed to contain them.
//!
//! Control tokens (`<|im_end|>`, `<bos>`) frame a conversation. Text never turns into one by itself: the encoders
//! below this room treat all text as ordinary, and only this room, for text that the caller trusts, cuts them out.

use aho_corasick::{AhoCorasick, Anchored, Input, MatchKind, StartKind};
use plimsoll_core::TokenId;

use crate::TextError;

/// One control token of a vocabulary.
#[derive(Clone, Debug)]
pub(crate) struct ControlToken {
    pub(crate) id: TokenId,
    pub(crate) text: String,
    /// Swallows the white space before it, or after it.
    pub(crate) strips_left: bool,
    pub(crate) strips_right: bool,
}

impl ControlToken {
    pub(crate) fn new(id: TokenId, text: impl Into<String>) -> Self {
        Self { id, text: text.into(), strips_left: false, strips_right: false }
    }
}

/// A stretch of text, or a control token between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment<'a> {
    Text(&'a str),
    Control(TokenId),
}

/// All control tokens of a vocabulary.
pub(crate) struct ControlTokens {
    tokens: Vec<ControlToken>,
    /// The few that swallow what follows them.
    strip_right: Vec<TokenId>,
    /// Leftmost-longest, pattern `i` being `tokens[i]`. None when there are no control tokens.
    matcher: Option<AhoCorasick>,
}

impl ControlTokens {
    pub(crate) fn new(mut tokens: Vec<ControlToken>) -> Result<Self, TextError> {
        tokens.retain(|token| !token.text.is_empty());
        let matcher = (!tokens.is_empty())
            .then(|| {
                AhoCorasick::builder()
                    .match_kind(MatchKind::LeftmostLongest)
                    .start_kind(StartKind::Both)
                    .build(tokens.iter().map(|token| &token.text))
            })
            .transpose()
            .map_err(|e| TextError::Vocabulary(e.to_string()))?;
        let strip_right = tokens.iter().filter(|token| token.strips_right).map(|token| token.id).collect();
        Ok(Self { tokens, strip_right, matcher })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ControlToken> {
        self.tokens.iter()
    }

    /// Cuts `text` at every control token in it; of overlapping ones the leftmost, then the longest, counts.
    pub(crate) fn split<'a>(&self, text: &'a str) -> Vec<Segment<'a>> {
        let mut segments = Vec::new();
        let mut rest = 0;
        for found in self.matcher.iter().flat_map(|matcher| matcher.find_iter(text)) {
            let token = &self.tokens[found.pattern().as_usize()];
            self.push_text(&mut segments, &text[rest..found.start()], Some(token));
            segments.push(Segment::Control(token.id));
            rest = found.end();
        }
        self.push_text(&mut segments, &text[rest..], None);
        segments
    }

    /// Appends ordinary text that stands between the last segment and the control token `next`, less the white
    /// space that either swallows.
    pub(crate) fn push_text<'a>(&self, segments: &mut Vec<Segment<'a>>, text: &'a str, next: Option<&ControlToken>) {
        let mut text = text;
        if let Some(Segment::Control(id)) = segments.last()
            && self.strip_right.contains(id)
        {
            text = text.trim_start();
        }
        if next.is_some_and(|token| token.strips_left) {
            text = text.trim_end();
        }
        if !text.is_empty() {
            segments.push(Segment::Text(text));
        }
    }

    /// The longest control token that `text` begins with.
    pub(crate) fn at_start(&self, text: &str) -> Option<&ControlToken> {
        let found = self.matcher.as_ref()?.find(Input::new(text).anchored(Anchored::Yes))?;
        Some(&self.tokens[found.pattern().as_usize()])
    }

    /// The byte ranges of every control token in `text`.
    pub(crate) fn ranges(&self, text: &str) -> Vec<std::ops::Range<usize>> {
        self.matcher.iter().flat_map(|matcher| matcher.find_iter(text)).map(|found| found.range()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_longest_token_wins() {
        let tokens = ControlTokens::new(vec![ControlToken::new(0, "<a>"), ControlToken::new(1, "<a><b>")]).unwrap();
        let segments = tokens.split("x<a><b>y<a>");
        assert_eq!(segments, [Segment::Text("x"), Segment::Control(1), Segment::Text("y"), Segment::Control(0)]);
        assert_eq!(tokens.at_start("<a>!").unwrap().id, 0);
        assert!(tokens.at_start(" <a>").is_none());
    }

    #[test]
    fn white_space_is_swallowed_where_a_token_says_so() {
        let stripping = ControlToken { strips_left: true, strips_right: true, ..ControlToken::new(7, "<m>") };
        let tokens = ControlTokens::new(vec![stripping, ControlToken::new(8, "<k>")]).unwrap();
        assert_eq!(
            tokens.split("a <m> b <k> <m>"),
            [Segment::Text("a"), Segment::Control(7), Segment::Text("b "), Segment::Control(8), Segment::Control(7)]
        );
    }

    #[test]
    fn without_control_tokens_all_is_text() {
        let tokens = ControlTokens::new(vec![ControlToken::new(0, "")]).unwrap();
        assert_eq!(tokens.split("<s>"), [Segment::Text("<s>")]);
        assert!(tokens.at_start("<s>").is_none());
    }
}
