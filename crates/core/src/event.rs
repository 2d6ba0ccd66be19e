//! What comes back for a request, in order: `Scheduled` once, `Prompt`s where they were asked for, `Token`s, and the last
//! of them with a finish reason; or `Failed` at any point.

use crate::{SampleFault, TokenId};

/// One news item of one request.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenEvent {
    /// Its first step was planned; `cached_tokens` prompt tokens came from the prefix cache.
    Scheduled { cached_tokens: u32 },
    /// Log probabilities of the next prompt tokens, one entry a token. All of them together are those of the prompt's
    /// tokens but the first.
    Prompt(Vec<PromptLogprobs>),
    /// A token was sampled. `finish` is set on the last one.
    Token { token: TokenId, logprobs: Option<Box<TokenLogprobs>>, finish: Option<FinishReason> },
    /// The request ended without its stop conditions being met. Nothing follows.
    Failed(SampleFault),
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// A stop token was sampled (it is the event's token).
    Stop,
    /// `max_tokens` or the context length was reached.
    Length,
}

/// Log probabilities (natural) of one sampled position, after bias, penalties and temperature-free softmax.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the sampled token.
    pub logprob: f32,
    /// Likeliest first; as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// Log probabilities (natural) of one prompt token, by the model's logits as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptLogprobs {
    /// Of the token that stands in the prompt.
    pub logprob: f32,
    /// Its place by likelihood: 1 is the likeliest.
    pub rank: u32,
    /// Likeliest first; as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}
