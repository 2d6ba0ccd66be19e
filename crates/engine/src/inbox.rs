//! What travels from the handles to the engine thread, and how the thread sleeps while there is nothing.
//!
//! One lock guards two lists and a phase. Both lists are bounded by the live requests: a request is submitted once
//! after it was admitted, and cancelled at most once, by its stream's drop, while it is live. So cancelling needs no
//! free place in a queue, and nothing here ever blocks a caller for longer than a push.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use plimsoll_core::{Request, RequestId};
use plimsoll_sched::SchedulerStats;
use tokio::sync::watch;

use crate::admission::Admission;
use crate::handle::{EngineConfig, EngineFault, SubmitError};
use crate::stats::{EngineStats, ProgressClock, StepStats};
use crate::stream::{EventSink, EventStream, channel};

/// A request and where its events go.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) request: Request,
    pub(crate) sink: EventSink,
}

/// How far the engine is on its way out. Only ever moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Takes nothing new, finishes what is live.
    Draining,
    /// Takes nothing new, cancels what is live.
    Stopping,
    /// The thread has left its loop in good order.
    Stopped,
    /// The thread has left its loop because something broke.
    Broken,
}

/// Everything that arrived since the engine last looked.
#[derive(Debug)]
pub(crate) struct Arrivals {
    pub(crate) submissions: Vec<Submission>,
    pub(crate) cancelled: Vec<RequestId>,
    pub(crate) phase: Phase,
}

impl Arrivals {
    pub(crate) fn none() -> Self {
        Self { submissions: Vec::new(), cancelled: Vec::new(), phase: Phase::Open }
    }
}

#[derive(Debug)]
struct Inbox {
    arrivals: Arrivals,
    /// The engine sleeps on `wake`; spares the system call while it works.
    is_engine_asleep: bool,
}

/// What engine thread, handles and streams share.
#[derive(Debug)]
pub(crate) struct Shared {
    config: EngineConfig,
    admission: Arc<Admission>,
    inbox: Mutex<Inbox>,
    wake: Condvar,
    clock: ProgressClock,
    published: Mutex<(StepStats, SchedulerStats)>,
    outcome: watch::Sender<Option<Result<(), EngineFault>>>,
}

impl Shared {
    pub(crate) fn new(config: EngineConfig, scheduler: SchedulerStats) -> Arc<Self> {
        Arc::new(Self {
            admission: Admission::new(config.max_requests, config.max_queued_tokens),
            config,
            inbox: Mutex::new(Inbox { arrivals: Arrivals::none(), is_engine_asleep: false }),
            wake: Condvar::new(),
            clock: ProgressClock::start(),
            published: Mutex::new((StepStats::default(), scheduler)),
            outcome: watch::Sender::new(None),
        })
    }

    pub(crate) fn config(&self) -> &EngineConfig {
        &self.config
    }

    // ---- the handles' side ----

    pub(crate) fn submit(self: &Arc<Self>, request: Request) -> Result<EventStream, SubmitError> {
        let mut inbox = lock(&self.inbox);
        match inbox.arrivals.phase {
            Phase::Open => {}
            Phase::Draining | Phase::Stopping | Phase::Stopped => return Err(SubmitError::Draining),
            Phase::Broken => return Err(SubmitError::Dead),
        }
        let was_idle = self.admission.requests() == 0;
        let permit = self.admission.admit(request.prompt.len()).ok_or(SubmitError::QueueFull)?;
        if was_idle {
            self.clock.touch(Instant::now());
        }
        // `Scheduled`, `max_tokens` tokens and at most one `Prompt` a prompt token are all that can come: a short request
        // can never overrun.
        let scores = request.sampling.prompt_logprobs.map_or(0, |_| request.prompt.len());
        let most = (request.stop.max_tokens as usize).saturating_add(1 + scores);
        let (sink, stream) = channel(request.id, most.min(self.config.event_capacity).max(2), permit, self);
        inbox.arrivals.submissions.push(Submission { request, sink });
        self.wake_engine(inbox);
        Ok(stream)
    }

    pub(crate) fn cancel(&self, id: RequestId) {
        let mut inbox = lock(&self.inbox);
        if inbox.arrivals.phase < Phase::Stopped {
            inbox.arrivals.cancelled.push(id);
            self.wake_engine(inbox);
        }
    }

    /// Moves on to `phase`, never back.
    pub(crate) fn advance(&self, phase: Phase) {
        let mut inbox = lock(&self.inbox);
        inbox.arrivals.phase = inbox.arrivals.phase.max(phase);
        self.wake_engine(inbox);
    }

    fn wake_engine(&self, mut inbox: MutexGuard<'_, Inbox>) {
        if std::mem::take(&mut inbox.is_engine_asleep) {
            drop(inbox);
            self.wake.notify_one();
        }
    }

    pub(crate) fn outcome(&self) -> watch::Receiver<Option<Result<(), EngineFault>>> {
        self.outcome.subscribe()
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let phase = lock(&self.inbox).arrivals.phase;
        let (steps, scheduler) = lock(&self.published).clone();
        let live_requests = self.admission.requests();
        EngineStats {
            is_alive: phase < Phase::Stopped,
            is_draining: matches!(phase, Phase::Draining | Phase::Stopping),
            live_requests,
            queued_prompt_tokens: self.admission.queued_tokens(),
            stalled_for: if live_requests > 0 { self.clock.elapsed() } else { Default::default() },
            steps,
            scheduler,
        }
    }

    // ---- the engine's side ----

    /// Moves all that arrived into `into`, whose lists are empty. Sleeps first while `is_idle` and there is nothing.
    pub(crate) fn collect(&self, is_idle: bool, into: &mut Arrivals) {
        let mut inbox = lock(&self.inbox);
        if is_idle {
            inbox = self.sleep_while_empty(inbox);
        }
        debug_assert!(into.submissions.is_empty() && into.cancelled.is_empty());
        std::mem::swap(&mut inbox.arrivals.submissions, &mut into.submissions);
        std::mem::swap(&mut inbox.arrivals.cancelled, &mut into.cancelled);
        into.phase = inbox.arrivals.phase;
    }

    fn sleep_while_empty<'a>(&self, mut inbox: MutexGuard<'a, Inbox>) -> MutexGuard<'a, Inbox> {
        let has_nothing = |a: &Arrivals| a.submissions.is_empty() && a.cancelled.is_empty() && a.phase == Phase::Open;
        while has_nothing(&inbox.arrivals) {
            inbox.is_engine_asleep = true;
            inbox = self.wake.wait(inbox).unwrap_or_else(PoisonError::into_inner);
        }
        inbox.is_engine_asleep = false;
        inbox
    }

    /// Makes the state after a step visible to [`Shared::stats`].
    pub(crate) fn publish(&self, steps: &StepStats, scheduler: SchedulerStats) {
        *lock(&self.published) = (*steps, scheduler);
    }

    pub(crate) fn note_progress(&self, now: Instant) {
        self.clock.touch(now);
    }

    /// Refuses new work for good, and drops what was submitted and not collected: its clients see the fault.
    pub(crate) fn close(&self, phase: Phase) {
        let dropped = {
            let mut inbox = lock(&self.inbox);
            inbox.arrivals.phase = phase;
            inbox.arrivals.cancelled.clear();
            std::mem::take(&mut inbox.arrivals.submissions)
        };
        drop(dropped);
    }

    /// Tells everyone who awaits the end how it came.
    pub(crate) fn announce(&self, outcome: Result<(), EngineFault>) {
        self.outcome.send_replace(Some(outcome));
    }
}

/// No code under these locks can leave their data half-changed, so a poisoned lock is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
