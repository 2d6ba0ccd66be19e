//! Why a configuration or a request is refused, and what to change.

use plimsoll_core::RequestId;
use thiserror::Error;

/// A [`crate::SchedulerConfig`] that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("block_size is 0: set it to 16 or another positive number of tokens")]
    ZeroBlockSize,
    #[error("the KV cache has no groups: give it one for each kind of attention layer")]
    NoGroups,
    #[error("KV group {group} has no blocks: give the KV cache more memory")]
    EmptyPool { group: usize },
    #[error("KV group {group} has a window of 0 tokens: use at least 1, or no window")]
    ZeroWindow { group: usize },
    #[error("max_num_seqs is 0: set it to at least 1")]
    NoSeqs,
    #[error(
        "max_num_batched_tokens ({tokens}) is below max_num_seqs ({seqs}), so that not every running sequence could \
         take a step: raise the first or lower the second"
    )]
    BudgetTooSmall { tokens: u32, seqs: u32 },
    #[error("max_model_len is {tokens}: it must hold at least one prompt token and one generated token")]
    ContextTooShort { tokens: u32 },
    #[error(
        "the waiting queue holds {requests} requests and {tokens} prompt tokens: it must hold at least 1 request and \
         max_model_len ({model_len}) tokens"
    )]
    QueueTooSmall { requests: u32, tokens: u64, model_len: u32 },
}

/// A request that is not taken. Only [`AddError::QueueFull`] is worth a retry as it is.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddError {
    #[error("the prompt is empty: send at least one token")]
    EmptyPrompt,
    #[error("max_tokens is 0: ask for at least 1")]
    ZeroMaxTokens,
    #[error(
        "the prompt has {prompt} tokens and the context holds {max_model_len} with at least one generated token: \
         shorten the prompt"
    )]
    TooLong { prompt: usize, max_model_len: u32 },
    #[error(
        "prompt and max_tokens together may take {tokens} tokens, which need {needed} blocks of KV group {group} where \
         {total} exist: lower max_tokens, shorten the prompt, or give the KV cache more memory"
    )]
    TooLargeForCache { tokens: u32, group: usize, needed: u32, total: u32 },
    #[error("{requests} requests with {tokens} prompt tokens are waiting already: retry later")]
    QueueFull { requests: u32, tokens: u64 },
    #[error("request {} is in the scheduler already: use each id once", .0.0)]
    DuplicateId(RequestId),
}
