//! What a scheduler is told once, at start.

use plimsoll_core::CacheConfig;

use crate::{ConfigError, Policy};

/// Limits and policy of one [`crate::Scheduler`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// The KV cache to hand out. A request that could not finish in it alone is refused.
    pub cache: CacheConfig,
    /// Sequences at most that have begun and not ended: slots of the executor.
    pub max_num_seqs: u32,
    /// Input tokens at most in one step, over all sequences. At least `max_num_seqs`, so that no decoding sequence
    /// ever waits for the budget.
    pub max_num_batched_tokens: u32,
    /// Tokens at most in one sequence, prompt and generated together. At least 2.
    pub max_model_len: u32,
    /// Bounds of the queue of requests that have not begun.
    pub max_waiting: WaitingLimits,
    /// Who begins first.
    pub policy: Policy,
    /// Whether finished and running sequences' blocks are offered to others with the same prefix.
    pub prefix_caching: bool,
}

/// How much may wait. A request that would go past either bound is refused at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingLimits {
    /// Requests; at least 1.
    pub requests: u32,
    /// Prompt tokens of those requests together; at least `max_model_len`, so that every valid request can wait.
    pub prompt_tokens: u64,
}

impl SchedulerConfig {
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        if self.cache.block_size == 0 {
            return Err(ConfigError::ZeroBlockSize);
        }
        if self.cache.groups.is_empty() {
            return Err(ConfigError::NoGroups);
        }
        for (group, kv) in self.cache.groups.iter().enumerate() {
            if kv.num_blocks == 0 {
                return Err(ConfigError::EmptyPool { group });
            }
            if kv.window == Some(0) {
                return Err(ConfigError::ZeroWindow { group });
            }
        }
        if self.max_num_seqs == 0 {
            return Err(ConfigError::NoSeqs);
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(ConfigError::BudgetTooSmall { tokens: self.max_num_batched_tokens, seqs: self.max_num_seqs });
        }
        if self.max_model_len < 2 {
            return Err(ConfigError::ContextTooShort { tokens: self.max_model_len });
        }
        if self.max_waiting.requests == 0 || self.max_waiting.prompt_tokens < u64::from(self.max_model_len) {
            return Err(ConfigError::QueueTooSmall {
                requests: self.max_waiting.requests,
                tokens: self.max_waiting.prompt_tokens,
                model_len: self.max_model_len,
            });
        }
        Ok(())
    }
}
