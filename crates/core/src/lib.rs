//! The plain values that every crate shares: ids, requests, step plans and their outcomes, and the seam between
//! the scheduler and a device ([`Executor`]).
//!
//! This crate depends on `std` alone. It must never know candle, tokio, a clock, a random source or a wire format.

mod cache;
mod event;
mod executor;
mod ids;
mod plan;
mod request;

pub use cache::{CacheConfig, KvGroup};
pub use event::{FinishReason, PromptLogprobs, TokenEvent, TokenLogprobs};
pub use executor::{Executor, ExecutorError, Ticket};
pub use ids::{BlockId, RequestId, SeqSlot, TokenId};
pub use plan::{
    GroupTables, PromptScores, PromptSpan, SampleFault, Sampled, ScheduledSeq, SlotBinding, StepOutput, StepPlan,
    TokenInput,
};
pub use request::{Request, SamplingParams, StopConditions};
