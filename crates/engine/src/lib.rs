//! The engine thread: the loop around a [`Scheduler`](plimsoll_sched::Scheduler) and a device's
//! [`Executor`](plimsoll_core::Executor), and the handle through which the rest of the process submits requests and
//! reads their events.
//!
//! One OS thread owns scheduler and executor. Nothing outside can make it wait: submitting and cancelling are a push
//! under a short lock, each request's events go into a bounded channel, and a client that lets its channel run full is
//! cancelled. Every queue here is bounded by the number of live requests, which is bounded at the door.
//!
//! The engine knows token ids. It must never know text, HTTP, a model or a device.

mod admission;
mod engine;
mod handle;
mod inbox;
mod stats;
mod stream;

/// Why the scheduler could not take a request: part of [`StreamEnd`].
pub use plimsoll_sched::AddError;

pub use handle::{Engine, EngineConfig, EngineFault, EngineHandle, SubmitError, spawn};
pub use stats::{EngineStats, StepStats};
pub use stream::{EventStream, StreamEnd, TimedEvent};
