//! Log probabilities in the two shapes that clients know.

use std::collections::BTreeMap;

use plimsoll_api::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob};
use plimsoll_core::{TokenId, TokenLogprobs};
use plimsoll_text::Tokenizer;

/// What a token that cannot come has instead of minus infinity, which JSON does not know.
pub(crate) const LEAST: f32 = -9999.0;

/// One generated token and how likely it was.
#[derive(Clone, Debug)]
pub(crate) struct ScoredToken {
    pub(crate) token: TokenId,
    pub(crate) logprobs: Box<TokenLogprobs>,
}

pub(crate) fn text_of(tokenizer: &Tokenizer, token: TokenId) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned()
}

/// The chat's shape: one entry a token, with its bytes.
pub(crate) fn for_chat(scored: &[ScoredToken], tokenizer: &Tokenizer) -> ChatLogprobs {
    let top = |&(token, logprob): &(TokenId, f32)| TopLogprob {
        token: text_of(tokenizer, token),
        logprob: logprob.max(LEAST),
        bytes: Some(tokenizer.token_bytes(token).to_vec()),
    };
    let entry = |scored: &ScoredToken| TokenLogprob {
        token: text_of(tokenizer, scored.token),
        logprob: scored.logprobs.logprob.max(LEAST),
        bytes: Some(tokenizer.token_bytes(scored.token).to_vec()),
        top_logprobs: scored.logprobs.top.iter().map(top).collect(),
    };
    ChatLogprobs { content: Some(scored.iter().map(entry).collect()) }
}

/// The completions' older shape: parallel lists. `offset`, in characters, is where the first token starts in the
/// choice's text; it is moved past the last.
pub(crate) fn for_completion(scored: &[ScoredToken], tokenizer: &Tokenizer, offset: &mut usize) -> CompletionLogprobs {
    let mut lists = CompletionLogprobs::default();
    for ScoredToken { token, logprobs } in scored {
        let text = text_of(tokenizer, *token);
        lists.text_offset.push(*offset);
        *offset += text.chars().count();
        let top = logprobs.top.iter().map(|&(token, logprob)| (text_of(tokenizer, token), logprob.max(LEAST)));
        let mut top: BTreeMap<_, _> = top.collect();
        // The chosen one is there even where it is none of the likeliest.
        top.insert(text.clone(), logprobs.logprob.max(LEAST));
        lists.top_logprobs.push(Some(top));
        lists.token_logprobs.push(Some(logprobs.logprob.max(LEAST)));
        lists.tokens.push(text);
    }
    lists
}
