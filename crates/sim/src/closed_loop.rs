//! A closed loop in virtual time: so many clients, each sending its next request when its last one has ended. What a
//! server would do under the load that `plimsoll saturate` offers.

use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;

use plimsoll_core::{
    Executor, ExecutorError, Request, RequestId, SamplingParams, StepPlan, StopConditions, Ticket, TokenEvent,
};
use plimsoll_sched::Scheduler;

use crate::roofline::{Bound, Roofline};
use crate::{CostExecutor, NullConfig, SimRng};

/// Requests in all, at least: with few clients each sends more.
const LEAST_REQUESTS: u32 = 64;
/// Requests of each client, at least. The first is of the transient.
const LEAST_ROUNDS: u32 = 4;

/// The load.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedLoop {
    pub clients: u32,
    /// Lengths in tokens, each as likely as any other. A client's first output may be shorter than the shortest, so that
    /// the clients do not go in step.
    pub prompt: RangeInclusive<u32>,
    pub output: RangeInclusive<u32>,
    pub seed: u64,
}

/// What became of it, measured from when every client has had its first answer to when the first one has no more to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct ClosedLoopReport {
    pub seconds: f64,
    /// Tokens and requests that ended in that time.
    pub output_tokens: u64,
    pub requests: u64,
    /// Milliseconds, ascending, of those requests.
    pub ttft_ms: Vec<f64>,
    pub tpot_ms: Vec<f64>,
    /// Sequences in a step on average, over time.
    pub mean_running: f64,
    /// The most of any KV group's blocks that were in use at once, 0 to 1.
    pub most_kv_usage: f64,
    pub preemptions: u64,
    /// Nanoseconds by what bounded them, in the order of [`Bound::ALL`].
    pub bound_ns: [f64; Bound::ALL.len()],
}

impl ClosedLoopReport {
    pub fn output_tokens_per_s(&self) -> f64 {
        self.output_tokens as f64 / self.seconds
    }

    pub fn requests_per_s(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// What the most time went to.
    pub fn bound(&self) -> Bound {
        let most = |a: &&Bound, b: &&Bound| self.bound_ns[**a as usize].total_cmp(&self.bound_ns[**b as usize]);
        Bound::ALL.iter().max_by(most).copied().expect("there are bounds")
    }
}

impl ClosedLoop {
    /// Runs the load on `scheduler` with steps as long as `roofline` says, two in flight.
    ///
    /// # Errors
    /// Those of the executor.
    ///
    /// # Panics
    /// If the scheduler refuses a request: its limits must hold all clients at once, and the longest request.
    pub fn run(&self, scheduler: &mut Scheduler, roofline: &Roofline) -> Result<ClosedLoopReport, ExecutorError> {
        let config = NullConfig { max_in_flight: 2, ..NullConfig::default() };
        let mut executor = CostExecutor::new(config, roofline.clone());
        let mut run = Run::new(self);
        (0..self.clients).for_each(|client| run.send(client, scheduler, 0));
        let mut in_flight: VecDeque<(Ticket, StepPlan)> = VecDeque::new();
        loop {
            if in_flight.len() < executor.max_in_flight()
                && let Some(plan) = scheduler.plan()
            {
                run.look(&plan, scheduler, roofline);
                in_flight.push_back((executor.submit(&plan)?, plan));
                continue;
            }
            let Some((ticket, plan)) = in_flight.pop_front() else { break };
            let output = executor.wait(ticket)?;
            run.step_ended(&plan, executor.now_ns());
            for (id, event) in scheduler.commit(output) {
                run.hear(id, &event, scheduler, executor.now_ns());
            }
            scheduler.recycle(plan);
        }
        Ok(run.report(scheduler.stats().preemptions))
    }
}

/// A request under way.
struct Asked {
    client: u32,
    sent_ns: u64,
    first_ns: Option<u64>,
    tokens: u64,
}

struct Run<'a> {
    load: &'a ClosedLoop,
    rng: SimRng,
    rounds: u32,
    next_id: u64,
    asked: HashMap<RequestId, Asked>,
    /// Requests that each client has had answered.
    answered: Vec<u32>,
    waiting_for_first: u32,
    /// When the measured time began and ended.
    from_ns: Option<u64>,
    to_ns: Option<u64>,
    last_ns: u64,
    row_ns: f64,
    report: ClosedLoopReport,
}

impl<'a> Run<'a> {
    fn new(load: &'a ClosedLoop) -> Self {
        let report = ClosedLoopReport {
            seconds: 0.0,
            output_tokens: 0,
            requests: 0,
            ttft_ms: Vec::new(),
            tpot_ms: Vec::new(),
            mean_running: 0.0,
            most_kv_usage: 0.0,
            preemptions: 0,
            bound_ns: [0.0; Bound::ALL.len()],
        };
        Self {
            load,
            rng: SimRng::new(load.seed),
            rounds: LEAST_ROUNDS.max(LEAST_REQUESTS.div_ceil(load.clients.max(1))),
            next_id: 0,
            asked: HashMap::new(),
            answered: vec![0; load.clients as usize],
            waiting_for_first: load.clients,
            from_ns: None,
            to_ns: None,
            last_ns: 0,
            row_ns: 0.0,
            report,
        }
    }

    fn is_measured(&self) -> bool {
        self.from_ns.is_some() && self.to_ns.is_none()
    }

    fn send(&mut self, client: u32, scheduler: &mut Scheduler, now_ns: u64) {
        let draw = |rng: &mut SimRng, range: &RangeInclusive<u32>| {
            rng.between((*range.start()).into(), (*range.end()).into()) as u32
        };
        let first = self.answered[client as usize] == 0;
        let prompt = draw(&mut self.rng, &self.load.prompt);
        let output = draw(&mut self.rng, &if first { 1..=*self.load.output.end() } else { self.load.output.clone() });
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let request = Request {
            id,
            prompt: vec![1; prompt as usize],
            sampling: SamplingParams { seed: id.0, ..SamplingParams::default() },
            stop: StopConditions { max_tokens: output, min_tokens: 0, stop_token_ids: Vec::new() },
            priority: 0,
        };
        scheduler.add(request).expect("the scheduler's limits hold the load");
        self.asked.insert(id, Asked { client, sent_ns: now_ns, first_ns: None, tokens: 0 });
    }

    fn look(&mut self, plan: &StepPlan, scheduler: &Scheduler, roofline: &Roofline) {
        if self.is_measured() {
            roofline.step(plan).book(&mut self.report.bound_ns);
        }
        let usage = |blocks: &plimsoll_sched::BlockUsage| f64::from(blocks.used) / f64::from(blocks.total.max(1));
        let most = scheduler.stats().blocks.iter().map(usage).fold(self.report.most_kv_usage, f64::max);
        self.report.most_kv_usage = most;
    }

    fn step_ended(&mut self, plan: &StepPlan, now_ns: u64) {
        if self.is_measured() {
            self.row_ns += plan.seqs.len() as f64 * (now_ns - self.last_ns) as f64;
        }
        self.last_ns = now_ns;
    }

    fn hear(&mut self, id: RequestId, event: &TokenEvent, scheduler: &mut Scheduler, now_ns: u64) {
        let TokenEvent::Token { finish, .. } = event else { return };
        let measured = self.is_measured();
        let asked = self.asked.get_mut(&id).expect("what is answered was asked");
        asked.tokens += 1;
        asked.first_ns.get_or_insert(now_ns);
        self.report.output_tokens += u64::from(measured);
        if finish.is_some() {
            self.answer(id, scheduler, now_ns);
        }
    }

    fn answer(&mut self, id: RequestId, scheduler: &mut Scheduler, now_ns: u64) {
        let Asked { client, sent_ns, first_ns, tokens } = self.asked.remove(&id).expect("what is answered was asked");
        if self.is_measured() {
            let first_ns = first_ns.unwrap_or(now_ns);
            self.report.requests += 1;
            self.report.ttft_ms.push((first_ns - sent_ns) as f64 / 1e6);
            if tokens > 1 {
                self.report.tpot_ms.push((now_ns - first_ns) as f64 / 1e6 / (tokens - 1) as f64);
            }
        }
        let answered = &mut self.answered[client as usize];
        *answered += 1;
        let (is_first, is_last) = (*answered == 1, *answered == self.rounds);
        if is_first {
            self.waiting_for_first -= 1;
            if self.waiting_for_first == 0 {
                self.from_ns = Some(now_ns);
            }
        }
        if is_last {
            self.to_ns.get_or_insert(now_ns);
        } else if self.to_ns.is_none() {
            self.send(client, scheduler, now_ns);
        }
    }

    fn report(mut self, preemptions: u64) -> ClosedLoopReport {
        let (from, to) = (self.from_ns.unwrap_or(0), self.to_ns.unwrap_or(self.last_ns));
        let ns = to.saturating_sub(from).max(1) as f64;
        self.report.seconds = ns / 1e9;
        self.report.mean_running = self.row_ns / ns;
        self.report.preemptions = preemptions;
        self.report.ttft_ms.sort_unstable_by(f64::total_cmp);
        self.report.tpot_ms.sort_unstable_by(f64::total_cmp);
        self.report
    }
}

#[cfg(test)]
mod tests;
