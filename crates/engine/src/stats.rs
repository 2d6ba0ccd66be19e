//! Snapshots of what the engine does, for metrics and health checks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use plimsoll_sched::SchedulerStats;

/// The engine at one moment. `steps` and `scheduler` are as of the last step's end; the rest is of now.
#[derive(Clone, Debug)]
pub struct EngineStats {
    /// The engine thread runs its loop. False for good after a drain, a shutdown or a fault.
    pub is_alive: bool,
    /// New requests are refused; the live ones are being finished.
    pub is_draining: bool,
    /// Requests submitted and not ended, wherever they are.
    pub live_requests: usize,
    /// Prompt tokens of the requests whose first step is still to come.
    pub queued_prompt_tokens: u64,
    /// How long live requests have been waiting for a step to end; zero where none is live. A healthy engine's never
    /// exceeds its longest step by much.
    pub stalled_for: Duration,
    pub steps: StepStats,
    pub scheduler: SchedulerStats,
}

/// Totals since the start, and the last step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Steps completed.
    pub steps: u64,
    /// Input tokens computed (prompt chunks, decoded tokens, recomputation).
    pub computed_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Requests that came to their end: stopped, at their length, or failed alone.
    pub finished_requests: u64,
    /// Of these, the ones that failed alone (`TokenEvent::Failed`).
    pub failed_requests: u64,
    /// Requests that the scheduler could not take.
    pub refused_requests: u64,
    /// Requests whose client dropped its stream before their end.
    pub cancelled_requests: u64,
    /// Requests whose client read too slowly.
    pub overrun_requests: u64,
    /// Time that the device was busy with steps.
    pub busy_time: Duration,
    /// The last step's time on the device.
    pub last_step_time: Duration,
    /// Sequences in the last step.
    pub last_step_seqs: usize,
    /// Input tokens in the last step.
    pub last_step_tokens: usize,
}

/// When the engine last got on, readable without a lock.
#[derive(Debug)]
pub(crate) struct ProgressClock {
    start: Instant,
    /// Nanoseconds from `start`; lasts 584 years.
    last: AtomicU64,
}

impl ProgressClock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    pub(crate) fn touch(&self, now: Instant) {
        self.last.fetch_max(now.duration_since(self.start).as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_nanos(self.last.load(Ordering::Relaxed)))
    }
}
