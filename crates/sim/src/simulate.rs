//! Runs a scheduler and a virtual device over a script of arrivals, and tells when each request got what.

use std::collections::{HashMap, VecDeque};

use plimsoll_core::{
    Executor, ExecutorError, FinishReason, Request, RequestId, SampleFault, StepPlan, Ticket, TokenEvent,
};
use plimsoll_sched::{AddError, Scheduler};

use crate::CostExecutor;

/// A request and when it comes.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrival {
    /// Virtual nanoseconds since the start.
    pub at_ns: u64,
    pub request: Request,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Finished(FinishReason),
    Failed(SampleFault),
    /// The scheduler did not take it.
    Refused(AddError),
    /// It came to a full house ([`simulate_behind_door`]).
    TurnedAway,
}

/// One request's story; times are virtual nanoseconds since the start.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestTiming {
    pub id: RequestId,
    pub arrived_ns: u64,
    /// When the host learned that its first step was planned; `None` if it was refused.
    pub scheduled_ns: Option<u64>,
    /// Prompt tokens that the prefix cache had.
    pub cached_tokens: u32,
    /// When each of its tokens came.
    pub token_ns: Vec<u64>,
    pub outcome: Outcome,
}

impl RequestTiming {
    /// Time to first token.
    pub fn ttft_ns(&self) -> Option<u64> {
        Some(self.token_ns.first()? - self.arrived_ns)
    }

    /// Mean time between tokens after the first (time per output token).
    pub fn tpot_ns(&self) -> Option<f64> {
        let (first, last) = (self.token_ns.first()?, self.token_ns.last()?);
        (self.token_ns.len() > 1).then(|| (last - first) as f64 / (self.token_ns.len() - 1) as f64)
    }
}

/// What a simulation gave.
#[derive(Clone, Debug, PartialEq)]
pub struct SimReport {
    /// In order of arrival.
    pub requests: Vec<RequestTiming>,
    pub steps: u64,
    /// When the last step was done.
    pub end_ns: u64,
}

/// Runs until all arrivals have ended. The script may be in any order; equal times keep theirs.
///
/// # Errors
/// Those of the executor.
///
/// # Panics
/// If the scheduler holds requests already, or stops making progress.
pub fn simulate(
    scheduler: &mut Scheduler,
    executor: &mut CostExecutor,
    arrivals: Vec<Arrival>,
) -> Result<SimReport, ExecutorError> {
    simulate_behind_door(scheduler, executor, arrivals, usize::MAX)
}

/// As [`simulate`], behind a door that turns away who comes while `places` are inside: what a server does at its load
/// line.
///
/// # Errors
/// As [`simulate`].
///
/// # Panics
/// As [`simulate`].
pub fn simulate_behind_door(
    scheduler: &mut Scheduler,
    executor: &mut CostExecutor,
    mut arrivals: Vec<Arrival>,
    places: usize,
) -> Result<SimReport, ExecutorError> {
    assert!(scheduler.is_idle(), "a simulation begins with an idle scheduler");
    arrivals.sort_by_key(|arrival| arrival.at_ns);
    let mut arrivals = VecDeque::from(arrivals);
    let mut report = Report { places, ..Report::default() };
    let mut in_flight: VecDeque<(Ticket, StepPlan)> = VecDeque::new();
    let mut steps = 0;
    loop {
        while arrivals.front().is_some_and(|arrival| arrival.at_ns <= executor.now_ns()) {
            report.add(arrivals.pop_front().expect("there is a first"), scheduler);
        }
        if in_flight.len() < executor.max_in_flight()
            && let Some(plan) = scheduler.plan()
        {
            in_flight.push_back((executor.submit(&plan)?, plan));
            steps += 1;
            continue;
        }
        if let Some((ticket, plan)) = in_flight.pop_front() {
            let output = executor.wait(ticket)?;
            let events = scheduler.commit(output);
            scheduler.recycle(plan);
            events.into_iter().for_each(|(id, event)| report.record(id, event, executor.now_ns()));
        } else if let Some(next) = arrivals.front() {
            executor.advance_to(next.at_ns);
        } else {
            break;
        }
    }
    assert!(scheduler.is_idle(), "requests are left that nothing will move");
    Ok(SimReport { requests: report.finish(), steps, end_ns: executor.now_ns() })
}

#[derive(Default)]
struct Report {
    stories: Vec<Story>,
    by_id: HashMap<RequestId, usize>,
    /// Requests that may be inside.
    places: usize,
    inside: usize,
}

/// A [`RequestTiming`] whose end is not known yet.
struct Story {
    id: RequestId,
    arrived_ns: u64,
    scheduled_ns: Option<u64>,
    cached_tokens: u32,
    token_ns: Vec<u64>,
    outcome: Option<Outcome>,
}

impl Report {
    fn add(&mut self, Arrival { at_ns, request }: Arrival, scheduler: &mut Scheduler) {
        let id = request.id;
        let outcome = if self.inside < self.places {
            scheduler.add(request).err().map(Outcome::Refused)
        } else {
            Some(Outcome::TurnedAway)
        };
        if outcome.is_none() {
            self.inside += 1;
            self.by_id.insert(id, self.stories.len());
        }
        let story =
            Story { id, arrived_ns: at_ns, scheduled_ns: None, cached_tokens: 0, token_ns: Vec::new(), outcome };
        self.stories.push(story);
    }

    fn record(&mut self, id: RequestId, event: TokenEvent, now_ns: u64) {
        let story = &mut self.stories[self.by_id[&id]];
        assert_eq!(story.outcome, None, "request {} got news after its end", id.0);
        match event {
            TokenEvent::Scheduled { cached_tokens } => {
                story.scheduled_ns = Some(now_ns);
                story.cached_tokens = cached_tokens;
            }
            TokenEvent::Prompt(_) => {}
            TokenEvent::Token { finish, .. } => {
                story.token_ns.push(now_ns);
                story.outcome = finish.map(Outcome::Finished);
            }
            TokenEvent::Failed(fault) => story.outcome = Some(Outcome::Failed(fault)),
        }
        if story.outcome.is_some() {
            self.inside -= 1;
        }
    }

    fn finish(self) -> Vec<RequestTiming> {
        let timing = |story: Story| RequestTiming {
            id: story.id,
            arrived_ns: story.arrived_ns,
            scheduled_ns: story.scheduled_ns,
            cached_tokens: story.cached_tokens,
            token_ns: story.token_ns,
            outcome: story.outcome.expect("an idle scheduler has ended every request"),
        };
        self.stories.into_iter().map(timing).collect()
    }
}

#[cfg(test)]
mod tests;
