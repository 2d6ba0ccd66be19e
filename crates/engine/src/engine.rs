//! The loop on the engine thread: take what arrived, plan, submit, wait, commit, deliver.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use plimsoll_core::{Executor, ExecutorError, RequestId, StepPlan, Ticket, TokenEvent};
use plimsoll_sched::Scheduler;

use crate::handle::EngineFault;
use crate::inbox::{Arrivals, Phase, Shared, Submission};
use crate::stats::StepStats;
use crate::stream::{Delivery, StreamEnd, StreamTable, TimedEvent, is_last};

/// The thread's body: runs the loop, and however it ends, leaves no client waiting and no new one let in.
pub(crate) fn supervise(
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    shared: &Arc<Shared>,
) -> Result<(), EngineFault> {
    let mut streams = StreamTable::default();
    // Nothing that a panic could leave half-changed is used afterwards: the streams are only ended.
    let looped = catch_unwind(AssertUnwindSafe(|| EngineLoop::new(scheduler, executor, shared, &mut streams).run()));
    let outcome = match looped {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(EngineFault::Device(error.to_string())),
        Err(panic) => Err(EngineFault::Panic(panic_text(&*panic))),
    };
    if let Err(fault) = &outcome {
        tracing::error!(live_requests = streams.len(), "the engine ends: {fault}");
    }
    shared.close(if outcome.is_ok() { Phase::Stopped } else { Phase::Broken });
    streams.end_all(&StreamEnd::EngineFault);
    shared.announce(outcome.clone());
    outcome
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".into())
}

/// A step from its planning to its commit.
struct Step {
    plan: StepPlan,
    planned_at: Instant,
}

struct EngineLoop<'a> {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    shared: &'a Shared,
    streams: &'a mut StreamTable,
    /// Submitted and not yet waited for; oldest first, at most the executor's `max_in_flight`.
    in_flight: VecDeque<(Ticket, Step)>,
    arrivals: Arrivals,
    /// What the last commit brought; kept for its memory.
    events: Vec<(RequestId, TokenEvent)>,
    stats: StepStats,
    last_planned_at: Instant,
    /// When the device's last step ended.
    device_free_at: Option<Instant>,
}

impl<'a> EngineLoop<'a> {
    fn new(
        scheduler: Scheduler,
        executor: Box<dyn Executor>,
        shared: &'a Shared,
        streams: &'a mut StreamTable,
    ) -> Self {
        Self {
            scheduler,
            executor,
            shared,
            streams,
            in_flight: VecDeque::new(),
            arrivals: Arrivals::none(),
            events: Vec::new(),
            stats: StepStats::default(),
            last_planned_at: Instant::now(),
            device_free_at: None,
        }
    }

    fn run(mut self) -> Result<(), ExecutorError> {
        loop {
            self.take_arrivals();
            if self.is_idle() && self.arrivals.phase > Phase::Open {
                self.rest();
                return Ok(());
            }
            self.fill_device()?;
            match self.in_flight.pop_front() {
                Some((ticket, step)) => self.finish_step(ticket, step)?,
                None => assert!(self.streams.is_empty(), "{} live requests, but no step to run", self.streams.len()),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.streams.is_empty()
    }

    /// Before the thread sleeps or ends: everything must have been given back.
    fn rest(&self) {
        assert!(self.scheduler.is_idle(), "the scheduler holds requests that no client waits for");
        self.scheduler.check_integrity();
        self.shared.publish(&self.stats, self.scheduler.stats());
    }

    /// Takes in what the handles left since the last step; sleeps until there is something where nothing is live.
    fn take_arrivals(&mut self) {
        if self.is_idle() {
            self.rest();
        }
        self.shared.collect(self.is_idle(), &mut self.arrivals);
        let mut arrivals = std::mem::replace(&mut self.arrivals, Arrivals::none());
        arrivals.submissions.drain(..).for_each(|submission| self.add(submission));
        // After the submissions: a request may be cancelled before the engine ever saw it.
        arrivals.cancelled.drain(..).for_each(|id| self.cancel(id));
        if arrivals.phase == Phase::Stopping {
            self.stop_all();
        }
        self.arrivals = arrivals;
    }

    fn add(&mut self, Submission { request, sink }: Submission) {
        let id = request.id;
        match self.scheduler.add(request) {
            Ok(()) => self.streams.insert(id, sink),
            Err(refusal) => {
                self.stats.refused_requests += 1;
                sink.end(StreamEnd::Refused(refusal));
            }
        }
    }

    fn cancel(&mut self, id: RequestId) {
        // The reason is never read: the stream was dropped.
        if self.streams.end(id, StreamEnd::Shutdown) {
            self.stats.cancelled_requests += 1;
            self.scheduler.cancel(id);
        }
    }

    fn stop_all(&mut self) {
        for id in self.streams.end_all(&StreamEnd::Shutdown) {
            self.scheduler.cancel(id);
        }
    }

    /// Plans and submits until the device has as many steps as it takes, or nothing more can be planned now.
    fn fill_device(&mut self) -> Result<(), ExecutorError> {
        while self.in_flight.len() < self.executor.max_in_flight() {
            let planned_at = Instant::now();
            let Some(plan) = self.scheduler.plan() else { break };
            let ticket = self.executor.submit(&plan)?;
            self.last_planned_at = planned_at;
            self.in_flight.push_back((ticket, Step { plan, planned_at }));
        }
        Ok(())
    }

    /// Waits for the oldest step, and hands out what it brought.
    fn finish_step(&mut self, ticket: Ticket, step: Step) -> Result<(), ExecutorError> {
        let output = self.executor.wait(ticket)?;
        let now = Instant::now();
        let mut events = std::mem::take(&mut self.events);
        self.scheduler.commit_into(output, &mut events);
        self.account(&step, now, &events);
        self.scheduler.recycle(step.plan);
        for (id, event) in events.drain(..) {
            // A commit tells of the requests that began since the last one: those of the latest plan.
            let at = if matches!(event, TokenEvent::Scheduled { .. }) { self.last_planned_at } else { now };
            self.deliver(id, TimedEvent { event, at });
        }
        self.events = events;
        Ok(())
    }

    /// Publishes the step's numbers: before its events, so that who reads an event finds the stats up to date.
    fn account(&mut self, step: &Step, now: Instant, events: &[(RequestId, TokenEvent)]) {
        // A step that was queued behind another began when that one ended.
        let began = self.device_free_at.map_or(step.planned_at, |free| free.max(step.planned_at));
        self.device_free_at = Some(now);
        let stats = &mut self.stats;
        stats.steps += 1;
        stats.computed_tokens += step.plan.num_tokens() as u64;
        stats.last_step_time = now.duration_since(began);
        stats.busy_time += stats.last_step_time;
        stats.last_step_seqs = step.plan.seqs.len();
        stats.last_step_tokens = step.plan.num_tokens();
        for (_, event) in events {
            stats.generated_tokens += u64::from(matches!(event, TokenEvent::Token { .. }));
            stats.failed_requests += u64::from(matches!(event, TokenEvent::Failed(_)));
            stats.finished_requests += u64::from(is_last(event));
        }
        self.shared.note_progress(now);
        self.shared.publish(&self.stats, self.scheduler.stats());
    }

    fn deliver(&mut self, id: RequestId, event: TimedEvent) {
        match self.streams.deliver(id, event) {
            Delivery::Done => return,
            Delivery::Overrun => self.stats.overrun_requests += 1,
            Delivery::Abandoned => self.stats.cancelled_requests += 1,
        }
        self.scheduler.cancel(id);
    }
}
