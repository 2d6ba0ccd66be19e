//! The scheduler: which sequences run in the next step, over which tokens, in which KV blocks.
//!
//! [`Scheduler`] is a deterministic state machine with four verbs, `add`, `cancel`, `plan` and `commit`: the same
//! calls in the same order give the same plans. Time enters as the count of steps alone.
//!
//! # Rules
//!
//! * **One rule for all work.** Each sequence has a count of computed tokens that catches up with its count of known
//!   tokens, under a token budget a step. Prefill in chunks, decode, resumption after preemption and prefix-cache
//!   hits are all this rule.
//! * **The device runs steps in order.** `plan` may be called again before the last plan's `commit`. A block that a
//!   preempted sequence gave up may thus be written by the very next step.
//! * **A block is shared once the step that filled it is committed**, never earlier: its tokens are then known, and
//!   the step is known not to have failed. Blocks that fell out of a window are let go at the same moment.
//! * **An ended sequence keeps its blocks and its slot until its last step in flight is committed.**
//! * **Whoever came first progresses.** A sequence that lacks a block takes it from the last in line that is not yet
//!   part of the step; the first in line always fits alone, because `add` refuses what does not.
//!
//! This crate must never know a clock, a random source, a thread, a tensor, or text.

mod block_pool;
mod block_table;
mod config;
mod error;
mod kv_blocks;
mod lru;
mod policy;
mod prefix_cache;
mod scheduler;
mod sequence;
mod stats;
mod step;
mod waiting;

pub use config::{SchedulerConfig, WaitingLimits};
pub use error::{AddError, ConfigError};
pub use policy::Policy;
pub use scheduler::Scheduler;
pub use stats::{BlockUsage, SchedulerStats};
