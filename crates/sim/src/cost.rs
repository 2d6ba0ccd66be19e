//! An executor that takes the time a cost model says, on a virtual clock.

use std::collections::VecDeque;

use plimsoll_core::{Executor, ExecutorError, StepOutput, StepPlan, Ticket};

use crate::{NullConfig, NullExecutor};

/// How long a step takes, in nanoseconds.
pub trait StepCost: std::fmt::Debug + Send {
    /// On the device.
    fn device_ns(&self, plan: &StepPlan) -> f64;

    /// On the host, which is hidden where steps overlap.
    fn host_ns(&self, plan: &StepPlan) -> f64;
}

/// How long a step takes on the device. Linear, which is what a roofline looks like from above: a constant for reading
/// the weights, and work in proportion to tokens and to the context that attention reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostModel {
    /// Nanoseconds a step.
    pub step_ns: f64,
    /// Nanoseconds an input token.
    pub token_ns: f64,
    /// Nanoseconds for each token of context that a row's attention reads (the row's tokens included).
    pub context_token_ns: f64,
    /// Nanoseconds that the host takes for each step, hidden where steps overlap.
    pub host_ns: f64,
}

impl StepCost for CostModel {
    fn device_ns(&self, plan: &StepPlan) -> f64 {
        let context: u64 = plan.seqs.iter().map(|seq| u64::from(seq.start) + u64::from(seq.len)).sum();
        self.step_ns + self.token_ns * plan.num_tokens() as f64 + self.context_token_ns * context as f64
    }

    fn host_ns(&self, _: &StepPlan) -> f64 {
        self.host_ns
    }
}

/// A [`NullExecutor`] whose steps take virtual time. The device runs one step after another; the host's clock, which
/// [`CostExecutor::now_ns`] reads, moves on by its own work and by waiting.
#[derive(Debug)]
pub struct CostExecutor {
    inner: NullExecutor,
    cost: Box<dyn StepCost>,
    now_ns: u64,
    device_free_ns: u64,
    ends_ns: VecDeque<u64>,
}

impl CostExecutor {
    /// An idle device at time 0.
    pub fn new(config: NullConfig, cost: impl StepCost + 'static) -> Self {
        Self {
            inner: NullExecutor::new(config),
            cost: Box::new(cost),
            now_ns: 0,
            device_free_ns: 0,
            ends_ns: VecDeque::new(),
        }
    }

    /// Virtual nanoseconds since the start.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Lets virtual time pass until `at_ns`, unless that is past already.
    pub fn advance_to(&mut self, at_ns: u64) {
        self.now_ns = self.now_ns.max(at_ns);
    }
}

impl Executor for CostExecutor {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        self.now_ns += self.cost.host_ns(plan).round() as u64;
        self.device_free_ns = self.device_free_ns.max(self.now_ns) + self.cost.device_ns(plan).round() as u64;
        self.ends_ns.push_back(self.device_free_ns);
        self.inner.submit(plan)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let output = self.inner.wait(ticket)?;
        let end_ns = self.ends_ns.pop_front().expect("every submitted step has an end");
        self.advance_to(end_ns);
        Ok(output)
    }

    fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::{ScheduledSeq, SeqSlot, TokenInput};

    fn plan(step: u64, rows: &[(u32, u32)]) -> StepPlan {
        let slot = SeqSlot(0);
        let row = |&(start, len)| {
            let input = TokenInput::Known;
            ScheduledSeq { slot, start, len, input, sample: None, scores: None }
        };
        let seqs: Vec<_> = rows.iter().map(row).collect();
        let tokens = vec![0; seqs.iter().map(|seq| seq.len as usize).sum()];
        StepPlan { step, seqs, tokens, ..StepPlan::default() }
    }

    const MODEL: CostModel = CostModel { step_ns: 1000.0, token_ns: 10.0, context_token_ns: 1.0, host_ns: 100.0 };

    #[test]
    fn costs_add_up() {
        let cases: &[(&[(u32, u32)], u32)] =
            &[(&[(0, 1)], 1000 + 10 + 1), (&[(0, 100)], 1000 + 1000 + 100), (&[(99, 1), (199, 1)], 1000 + 20 + 300)];
        for (rows, expected) in cases {
            assert_eq!(MODEL.device_ns(&plan(0, rows)), f64::from(*expected), "{rows:?}");
        }
    }

    #[test]
    fn overlap_hides_the_host() {
        let device = MODEL.device_ns(&plan(0, &[(0, 1)])) as u64;
        let mut lockstep = CostExecutor::new(NullConfig::default(), MODEL);
        for step in 0..10 {
            let ticket = lockstep.submit(&plan(step, &[(0, 1)])).unwrap();
            lockstep.wait(ticket).unwrap();
        }
        assert_eq!(lockstep.now_ns(), 10 * (100 + device));

        let mut overlapped = CostExecutor::new(NullConfig::default(), MODEL);
        let mut ticket = overlapped.submit(&plan(0, &[(0, 1)])).unwrap();
        for step in 1..10 {
            let next = overlapped.submit(&plan(step, &[(0, 1)])).unwrap();
            overlapped.wait(std::mem::replace(&mut ticket, next)).unwrap();
        }
        overlapped.wait(ticket).unwrap();
        assert_eq!(overlapped.now_ns(), 100 + 10 * device);
        overlapped.advance_to(5);
        assert_eq!(overlapped.now_ns(), 100 + 10 * device, "time never goes back");
    }
}
