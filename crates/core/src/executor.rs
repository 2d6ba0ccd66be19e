//! The seam between the engine and a device.

use std::fmt;

use crate::{StepOutput, StepPlan};

/// Runs step plans on a device. Plans are submitted in order and waited for in order.
pub trait Executor: Send {
    /// Queues a step. May run it at once and keep the result for [`Executor::wait`].
    ///
    /// # Errors
    /// Any error is fatal to the engine: the device's state is no longer known.
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError>;

    /// Blocks until the step is done. Each ticket is waited for once, oldest first.
    ///
    /// # Errors
    /// As [`Executor::submit`].
    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError>;

    /// Steps that may be submitted and not yet waited for: 1 runs in lockstep, 2 overlaps planning with execution.
    fn max_in_flight(&self) -> usize {
        1
    }

    /// Whether it serves requests with `prompt_logprobs`. One that does not is never handed such a request.
    fn scores_prompts(&self) -> bool {
        true
    }
}

/// A submitted step.
#[derive(Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// The device failed, and no later step can be trusted.
#[derive(Debug)]
pub struct ExecutorError(pub String);

impl fmt::Display for ExecutorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the device failed: {}", self.0)
    }
}

impl std::error::Error for ExecutorError {}
