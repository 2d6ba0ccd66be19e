//! Encodes with the `tokenizers` crate: byte-level BPE of GGUF files, and whatever a tokenizer.json describes.
//!
//! Every text that reaches this room is ordinary: control tokens were cut out before (see `control_tokens`).

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{Model, PreTokenizedString, PreTokenizer, Tokenizer};

use plimsoll_core::TokenId;

use crate::TextError;

/// Above this, text is cut where no word is cut, so that the working memory of the pieces stays small.
const PIECE_BYTES: usize = 32 * 1024;

pub(crate) struct BytePair {
    tokenizer: Tokenizer,
    /// The pre-tokenizer for text that follows a control token, where it differs from the one for a beginning.
    continuation: Option<PreTokenizerWrapper>,
    /// Whether words are cut by a pattern, which makes a cut between a letter and a space invisible.
    cuts_at_words: bool,
    /// Whether each digit is a word of its own.
    cuts_at_digits: bool,
}

impl BytePair {
    pub(crate) fn new(mut tokenizer: Tokenizer) -> Self {
        tokenizer.set_encode_special_tokens(true);
        let continuation = tokenizer.get_pre_tokenizer().and_then(without_first_prefix);
        let cuts_at_words = tokenizer.get_pre_tokenizer().is_some_and(cuts_between_letter_and_space)
            && !tokenizer.get_added_tokens_decoder().values().any(|token| token.content.contains(' '));
        let cuts_at_digits = tokenizer.get_pre_tokenizer().is_some_and(isolates_digits);
        Self { tokenizer, continuation, cuts_at_words, cuts_at_digits }
    }

    /// Appends the ids of `text`. `at_start`: nothing precedes it in the prompt.
    pub(crate) fn encode(&self, text: &str, at_start: bool, out: &mut Vec<TokenId>) -> Result<(), TextError> {
        let mut rest = text;
        let mut at_start = at_start;
        while !rest.is_empty() {
            let cut =
                if self.cuts_at_words { word_boundary(rest, PIECE_BYTES, self.cuts_at_digits) } else { rest.len() };
            self.encode_piece(&rest[..cut], at_start, out).map_err(|e| TextError::Encode(e.to_string()))?;
            rest = &rest[cut..];
            at_start = false;
        }
        Ok(())
    }

    fn encode_piece(&self, text: &str, at_start: bool, out: &mut Vec<TokenId>) -> tokenizers::Result<()> {
        let added = self.tokenizer.get_added_vocabulary();
        let mut words: PreTokenizedString = added.extract_and_normalize(self.tokenizer.get_normalizer(), text);
        let continuation = self.continuation.as_ref().filter(|_| !at_start);
        if let Some(pre_tokenizer) = continuation.or(self.tokenizer.get_pre_tokenizer()) {
            pre_tokenizer.pre_tokenize(&mut words)?;
        }
        let model = self.tokenizer.get_model();
        words.tokenize(|word| model.tokenize(word.get()))?;
        let splits = words.get_splits(tokenizers::OffsetReferential::Normalized, tokenizers::OffsetType::None);
        out.extend(splits.iter().filter_map(|(_, _, tokens)| tokens.as_ref()).flatten().map(|token| token.id));
        Ok(())
    }
}

/// A copy of `pre_tokenizer` that prepends no space, if it would prepend one to a beginning only.
fn without_first_prefix(pre_tokenizer: &PreTokenizerWrapper) -> Option<PreTokenizerWrapper> {
    match pre_tokenizer {
        PreTokenizerWrapper::Metaspace(metaspace) if metaspace.get_prepend_scheme() == PrependScheme::First => {
            let mut never = metaspace.clone();
            never.set_prepend_scheme(PrependScheme::Never);
            Some(never.into())
        }
        PreTokenizerWrapper::Sequence(sequence) => {
            let parts: &[PreTokenizerWrapper] = sequence.as_ref();
            let changed: Vec<_> = parts.iter().map(without_first_prefix).collect();
            changed.iter().any(Option::is_some).then(|| {
                let parts = parts.iter().zip(changed).map(|(part, new)| new.unwrap_or_else(|| part.clone()));
                Sequence::new(parts.collect()).into()
            })
        }
        _ => None,
    }
}

fn cuts_between_letter_and_space(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::ByteLevel(byte_level) => byte_level.use_regex && !byte_level.add_prefix_space,
        PreTokenizerWrapper::Split(split) => {
            matches!(&split.pattern, tokenizers::pre_tokenizers::split::SplitPattern::Regex(regex)
                if regex.contains(r"\s+(?!\S)") && regex.contains(r"\p{L}"))
        }
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().iter().any(cuts_between_letter_and_space),
        _ => false,
    }
}

fn isolates_digits(pre_tokenizer: &PreTokenizerWrapper) -> bool {
    match pre_tokenizer {
        PreTokenizerWrapper::Digits(digits) => digits.individual_digits,
        PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref().first().is_some_and(isolates_digits),
        _ => false,
    }
}

/// The last place in the first `limit` bytes of `text` between a letter and a space with a letter after it, or
/// between two digits if `cuts_digits`: every pattern known here ends a word there, and none looks further.
/// `text.len()` where there is no such place or no need.
fn word_boundary(text: &str, limit: usize, cuts_digits: bool) -> usize {
    if text.len() <= limit {
        return text.len();
    }
    let bytes = text.as_bytes();
    let is_boundary = |at: &usize| {
        let (before, here, after) = (bytes[at - 1], bytes[*at], bytes[at + 1]);
        (here == b' ' && before.is_ascii_alphabetic() && after.is_ascii_alphabetic())
            || (cuts_digits && here.is_ascii_digit() && before.is_ascii_digit())
    };
    (1..limit).rev().find(is_boundary).or_else(|| (limit..text.len() - 1).find(is_boundary)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_between_a_letter_and_a_spaced_letter() {
        assert_eq!(word_boundary("short text", 100, false), 10);
        assert_eq!(word_boundary("one two three", 8, false), 7);
        assert_eq!(word_boundary("one two three", 5, false), 3);
        assert_eq!(word_boundary("abcdefgh ij", 4, false), 8, "past the limit when there is none before it");
        assert_eq!(word_boundary("a  b\n c1 2d", 4, false), 11);
        assert_eq!(word_boundary("ééééééé", 4, false), 14);
        assert_eq!((word_boundary("123456", 4, true), word_boundary("123456", 4, false)), (3, 6));
    }
}
