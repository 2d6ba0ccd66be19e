//! Runs requests to their end on an executor, planning ahead as far as it lets, as the engine does.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use plimsoll_core::{Executor, Request, RequestId, SamplingParams, StopConditions, TokenEvent, TokenId, TokenLogprobs};
use plimsoll_sched::Scheduler;

use crate::model::Opened;

/// Is told when steps are submitted, one after the other.
pub trait Observer {
    /// # Errors
    /// Ends the run.
    fn before_submit(&mut self) -> Result<()> {
        Ok(())
    }

    /// # Errors
    /// Ends the run.
    fn after_submit(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Looks away.
pub struct Unobserved;

impl Observer for Unobserved {}

/// A scheduler and an executor that belong together.
pub struct Driver {
    scheduler: Scheduler,
    executor: Box<dyn Executor>,
    next_id: u64,
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Run {
    /// By the requests' places in the run.
    pub generated: Vec<Vec<Generated>>,
    pub steps: Vec<Step>,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    pub token: TokenId,
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// One step, in the order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub seqs: usize,
    pub tokens: usize,
    /// From the run's start.
    pub submitted: Duration,
    pub done: Duration,
}

/// What is asked of a model: token ids, and how many are to follow, the likeliest each time.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<TokenId>,
    pub tokens: u32,
    /// How many of the likeliest tokens are told with each.
    pub logprobs: Option<u32>,
}

impl Driver {
    /// # Errors
    /// The sizes contradict each other.
    pub fn new(opened: Opened) -> Result<Self> {
        Ok(Self { scheduler: Scheduler::new(opened.scheduler)?, executor: opened.executor, next_id: 0 })
    }

    /// All requests together, to their end.
    ///
    /// # Errors
    /// A request is refused or fails, or the device does.
    pub fn run(&mut self, asks: &[Ask], observer: &mut dyn Observer) -> Result<Run> {
        let first = self.next_id;
        for ask in asks {
            self.scheduler.add(self.request(ask))?;
            self.next_id += 1;
        }
        let mut run = Run { generated: vec![Vec::new(); asks.len()], steps: Vec::new() };
        let started = Instant::now();
        let mut in_flight = VecDeque::new();
        loop {
            while in_flight.len() < self.executor.max_in_flight() {
                let Some(plan) = self.scheduler.plan() else { break };
                let (seqs, tokens) = (plan.seqs.len(), plan.num_tokens());
                let submitted = started.elapsed();
                observer.before_submit()?;
                in_flight.push_back(self.executor.submit(&plan)?);
                observer.after_submit()?;
                run.steps.push(Step { seqs, tokens, submitted, done: Duration::MAX });
                self.scheduler.recycle(plan);
            }
            let Some(ticket) = in_flight.pop_front() else { break };
            let output = self.executor.wait(ticket)?;
            let at = run.steps.len() - 1 - in_flight.len();
            run.steps[at].done = started.elapsed();
            for (id, event) in self.scheduler.commit(output) {
                take(&mut run.generated, (id.0 - first) as usize, event)?;
            }
        }
        if !self.scheduler.is_idle() {
            bail!("the scheduler plans nothing, and not all requests have ended");
        }
        Ok(run)
    }

    fn request(&self, ask: &Ask) -> Request {
        let sampling = SamplingParams { temperature: 0.0, logprobs: ask.logprobs, ..SamplingParams::default() };
        let stop = StopConditions { max_tokens: ask.tokens, min_tokens: 0, stop_token_ids: Vec::new() };
        Request { id: RequestId(self.next_id), prompt: ask.prompt.clone(), sampling, stop, priority: 0 }
    }
}

fn take(generated: &mut [Vec<Generated>], request: usize, event: TokenEvent) -> Result<()> {
    let tokens = generated.get_mut(request).context("an event of an earlier run")?;
    match event {
        TokenEvent::Scheduled { .. } | TokenEvent::Prompt(_) => {}
        TokenEvent::Token { token, logprobs, .. } => tokens.push(Generated { token, logprobs }),
        TokenEvent::Failed(fault) => bail!("request {request} failed: {fault:?}"),
    }
    Ok(())
}

impl Run {
    /// Places of the steps in which `seqs` sequences got one token each, and the step before was of the same kind.
    pub fn steady_decodes(&self, seqs: usize) -> Vec<usize> {
        let decodes = |step: &Step| step.seqs == seqs && step.tokens == seqs;
        (1..self.steps.len()).filter(|&at| decodes(&self.steps[at]) && decodes(&self.steps[at - 1])).collect()
    }

    /// The median time from one steady decode step's end to the next's, in seconds.
    pub fn decode_interval(&self, seqs: usize) -> Option<f64> {
        let interval = |at: usize| (self.steps[at].done - self.steps[at - 1].done).as_secs_f64();
        median(self.steady_decodes(seqs).into_iter().map(interval).collect())
    }

    /// Seconds that the steps took which read more than a token a sequence, and those tokens.
    pub fn prefill(&self) -> (usize, f64) {
        let prefills = self.steps.iter().filter(|step| step.tokens > step.seqs);
        let tokens = prefills.clone().map(|step| step.tokens).sum();
        let begin = prefills.clone().map(|step| step.submitted).min().unwrap_or_default();
        let end = prefills.map(|step| step.done).max().unwrap_or_default();
        (tokens, (end - begin).as_secs_f64())
    }
}

/// None of nothing.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// By how much the log probabilities of two runs differ: root mean square over tokens that both name.
pub fn logprob_difference(a: &[Generated], b: &[Generated]) -> Option<f64> {
    let (mut squares, mut count) = (0.0, 0u32);
    for (a, b) in a.iter().zip(b) {
        let (Some(a), Some(b)) = (&a.logprobs, &b.logprobs) else { continue };
        let known: BTreeMap<TokenId, f32> = b.top.iter().copied().collect();
        for (token, logprob) in &a.top {
            if let Some(other) = known.get(token) {
                squares += f64::from(logprob - other).powi(2);
                count += 1;
            }
        }
    }
    (count > 0).then(|| (squares / f64::from(count)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(seqs: usize, tokens: usize, submitted_ms: u64, done_ms: u64) -> Step {
        let ms = Duration::from_millis;
        Step { seqs, tokens, submitted: ms(submitted_ms), done: ms(done_ms) }
    }

    #[test]
    fn steady_decodes_follow_decodes() {
        let steps =
            vec![step(2, 40, 0, 10), step(2, 2, 1, 12), step(2, 2, 10, 14), step(2, 2, 12, 17), step(1, 1, 14, 18)];
        let run = Run { generated: Vec::new(), steps };
        assert_eq!(run.steady_decodes(2), [2, 3]);
        assert_eq!(run.decode_interval(2), Some(0.003));
        assert_eq!(run.decode_interval(7), None);
        assert_eq!(run.prefill(), (40, 0.01));
    }

    #[test]
    fn runs_are_compared_where_both_name_a_token() {
        let generated = |top: &[(TokenId, f32)]| {
            let logprobs = TokenLogprobs { logprob: top[0].1, top: top.to_vec() };
            vec![Generated { token: top[0].0, logprobs: Some(Box::new(logprobs)) }]
        };
        let a = generated(&[(1, -0.5), (2, -1.0)]);
        assert_eq!(logprob_difference(&a, &generated(&[(1, -0.25), (3, -1.0)])), Some(0.25));
        assert_eq!(logprob_difference(&a, &generated(&[(4, -0.5)])), None);
    }
}
