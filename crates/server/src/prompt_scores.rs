//! Log probabilities of a prompt's tokens, in the two shapes that clients know: with `echo`, as the first of a
//! completion's parallel lists; and vLLM's `prompt_logprobs`.

use std::collections::BTreeMap;

use plimsoll_api::{CompletionLogprobs, PromptLogprob, PromptLogprobList};
use plimsoll_core::{PromptLogprobs, TokenId};
use plimsoll_text::Tokenizer;

use crate::logprobs::{LEAST, text_of};

/// The parallel lists of the prompt `text`, which is `ids`; `scores` are those of all tokens but the first.
pub(crate) fn of_echo(
    text: &str,
    ids: &[TokenId],
    scores: &[PromptLogprobs],
    top: usize,
    tokenizer: &Tokenizer,
) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    let mut place = Place { text, at: 0, characters: 0 };
    let scores = std::iter::once(None).chain(scores.iter().map(Some));
    for (&id, score) in ids.iter().zip(scores) {
        let token = text_of(tokenizer, id);
        lists.text_offset.push(place.characters);
        place.pass(tokenizer.token_bytes(id), tokenizer.is_special(id));
        lists.token_logprobs.push(score.map(|score| score.logprob.max(LEAST)));
        lists.top_logprobs.push(score.map(|score| {
            let likeliest = score.top.iter().take(top);
            let mut likeliest: BTreeMap<_, _> =
                likeliest.map(|&(id, logprob)| (text_of(tokenizer, id), logprob.max(LEAST))).collect();
            // The one that stands there is there even where it is none of the likeliest.
            likeliest.insert(token.clone(), score.logprob.max(LEAST));
            likeliest
        }));
        lists.tokens.push(token);
    }
    lists
}

/// The prompt's lists with those of what was generated.
pub(crate) fn joined((mut prompt, generated): (CompletionLogprobs, CompletionLogprobs)) -> CompletionLogprobs {
    prompt.tokens.extend(generated.tokens);
    prompt.token_logprobs.extend(generated.token_logprobs);
    prompt.top_logprobs.extend(generated.top_logprobs);
    prompt.text_offset.extend(generated.text_offset);
    prompt
}

/// vLLM's list: for each token but the first, what stands there and the `top` likeliest.
pub(crate) fn by_id(
    ids: &[TokenId],
    scores: &[PromptLogprobs],
    top: usize,
    tokenizer: &Tokenizer,
) -> PromptLogprobList {
    let entry = |id, logprob: f32, rank| {
        (id, PromptLogprob { logprob: logprob.max(LEAST), rank, decoded_token: text_of(tokenizer, id) })
    };
    let of_token = |(&id, score): (&TokenId, &PromptLogprobs)| {
        let likeliest = score.top.iter().zip(1..).take(top).map(|(&(id, logprob), rank)| entry(id, logprob, rank));
        let mut entries: BTreeMap<_, _> = likeliest.collect();
        entries.extend([entry(id, score.logprob, score.rank)]);
        Some(entries)
    };
    std::iter::once(None).chain(ids.iter().skip(1).zip(scores).map(of_token)).collect()
}

/// Where in its text a prompt's next token stands.
struct Place<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
    /// Characters that begin before `at`.
    characters: usize,
}

impl Place<'_> {
    /// Goes past a token. Tokenizers put control tokens before a text, and some a space, that do not stand in it.
    fn pass(&mut self, token: &[u8], is_special: bool) {
        let rest = &self.text.as_bytes()[self.at..];
        let without_space = token.strip_prefix(b" ").filter(|_| self.at == 0);
        let length = if rest.starts_with(token) {
            token.len()
        } else if let Some(shorter) = without_space.filter(|shorter| rest.starts_with(shorter)) {
            shorter.len()
        } else if is_special {
            0
        } else {
            // The tokenizer changed the text. This keeps in step where what it put in is as long.
            token.len().min(rest.len())
        };
        let begins = |byte: &&u8| (**byte & 0xC0) != 0x80;
        self.characters += rest[..length].iter().filter(begins).count();
        self.at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The offsets of tokens in a text.
    fn offsets(text: &str, tokens: &[(&[u8], bool)]) -> Vec<usize> {
        let mut place = Place { text, at: 0, characters: 0 };
        let mut offset = |&(token, is_special): &(&[u8], bool)| {
            let before = place.characters;
            place.pass(token, is_special);
            before
        };
        tokens.iter().map(&mut offset).collect()
    }

    #[test]
    fn tokens_stand_where_their_characters_begin() {
        assert_eq!(offsets("Hi yo", &[(b"Hi", false), (b" yo", false)]), [0, 2]);
        assert_eq!(offsets("né!", &[(b"n", false), (b"\xC3", false), (b"\xA9", false), (b"!", false)]), [0, 1, 2, 2]);
    }

    #[test]
    fn what_a_tokenizer_puts_before_a_text_takes_no_place() {
        assert_eq!(offsets("Hi yo", &[(b"<s>", true), (b" Hi", false), (b" yo", false)]), [0, 0, 2]);
        // A client may write the control token, and the space.
        assert_eq!(offsets("<s> Hi", &[(b"<s>", true), (b" Hi", false)]), [0, 3]);
    }

    #[test]
    fn a_text_that_the_tokenizer_changed_is_never_left() {
        assert_eq!(offsets("ab", &[(b"xyz", false), (b"ab", false), (b"c", false)]), [0, 2, 2]);
    }
}
