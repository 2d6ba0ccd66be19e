//! What is asked of the engine: a prompt of token ids, and how to continue it.

use crate::{RequestId, TokenId};

/// One sequence to generate. A wire request with `n > 1` becomes `n` of these.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub id: RequestId,
    /// Never empty.
    pub prompt: Vec<TokenId>,
    pub sampling: SamplingParams,
    pub stop: StopConditions,
    /// Lower is sooner, under the priority policy; ignored by the others.
    pub priority: i32,
}

/// When a sequence ends. Stop strings are not here: they are text, and the caller cancels on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopConditions {
    /// Generated tokens at most; at least 1.
    pub max_tokens: u32,
    /// No stop token is sampled before this many tokens were generated.
    pub min_tokens: u32,
    /// Sampling one of these ends the sequence; the end-of-sequence ids unless the client ignores them.
    pub stop_token_ids: Vec<TokenId>,
}

/// How the next token is chosen from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// `0.0` is greedy; else logits are divided by it.
    pub temperature: f32,
    /// Keep the `k` likeliest; `0` keeps all.
    pub top_k: u32,
    /// Keep the smallest set whose probability reaches this; `1.0` keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than `min_p` times the likeliest; `0.0` drops none.
    pub min_p: f32,
    /// Subtracted once a generated occurrence (OpenAI).
    pub frequency_penalty: f32,
    /// Subtracted once if generated at all (OpenAI).
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (CTRL, arXiv:1909.05858).
    pub repetition_penalty: f32,
    /// Added to the named logits. Ids are inside the vocabulary.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// If present, every other token is impossible. Never empty; ids are inside the vocabulary.
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// With the sample's index it alone decides the random draw, whatever else is in the batch.
    pub seed: u64,
    /// Report the chosen token's log probability and this many likeliest alternatives; `None` reports nothing.
    pub logprobs: Option<u32>,
    /// Report the log probability of every prompt token but the first, and this many likeliest alternatives of each;
    /// `None` reports nothing. Such a prompt is computed in full, whatever the prefix cache holds.
    pub prompt_logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            seed: 0,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}
