//! One device's [`Executor`](plimsoll_core::Executor): a step plan becomes a forward batch, the model's logits become
//! sampled tokens. And, before any weight is read, the plan of the device's memory.
//!
//! The runner knows tensors and slots. It must never know a model's architecture (it is handed a boxed
//! [`Model`](plimsoll_nn::Model)), a scheduling policy, text or a client.

mod batch;
#[cfg(any(test, feature = "cuda"))]
mod buckets;
mod executor;
#[cfg(feature = "cuda")]
mod gpu;
mod memory;
mod runner;
mod scoring;
mod slots;
mod split;

pub use executor::executor;
pub use memory::{GroupPlan, MemoryBudget, MemoryError, MemoryLimits, MemoryPlan};
pub use runner::{Runner, RunnerConfig};
