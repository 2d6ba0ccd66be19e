//! The null device's clock: steps that compute nothing and take the time that a cost model says, so that a whole server
//! has a capacity that is known. Its tokens are the null executor's.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use plimsoll_core::{Executor, ExecutorError, StepOutput, StepPlan, Ticket};
use plimsoll_sim::{NullConfig, NullExecutor};

/// Microseconds that a step takes, and each token in it. Both 0: none at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    step: u32,
    token: u32,
}

impl Pace {
    fn of(self, plan: &StepPlan) -> Duration {
        let tokens = u64::from(self.token) * plan.num_tokens() as u64;
        Duration::from_micros(u64::from(self.step) + tokens)
    }

    /// An executor that keeps it, with tokens below `vocab_size`.
    pub(crate) fn executor(self, vocab_size: u32) -> Box<dyn Executor> {
        let inner = NullExecutor::new(NullConfig { vocab_size, ..NullConfig::default() });
        match self == Self::default() {
            true => Box::new(inner),
            false => Box::new(Paced { inner, pace: self, ends: VecDeque::new() }),
        }
    }
}

/// `STEP:TOKEN`, as [`fmt::Display`] writes it.
impl FromStr for Pace {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (step, token) = text.split_once(':').ok_or(())?;
        let number = |text: &str| text.parse().map_err(drop);
        Ok(Self { step: number(step)?, token: number(token)? })
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.step, self.token)
    }
}

/// A [`NullExecutor`] that sleeps out each step, one after another.
struct Paced {
    inner: NullExecutor,
    pace: Pace,
    /// When the steps that were submitted end.
    ends: VecDeque<Instant>,
}

impl Executor for Paced {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        let now = Instant::now();
        let begins = self.ends.back().map_or(now, |end| now.max(*end));
        self.ends.push_back(begins + self.pace.of(plan));
        self.inner.submit(plan)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let output = self.inner.wait(ticket)?;
        let end = self.ends.pop_front().expect("every submitted step has an end");
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        Ok(output)
    }

    fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight()
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_core::{ScheduledSeq, SeqSlot, TokenInput};

    use super::*;

    #[test]
    fn a_step_takes_its_time_at_least() {
        let pace: Pace = "3000:100".parse().unwrap();
        assert_eq!(pace.to_string(), "3000:100");
        let seq =
            ScheduledSeq { slot: SeqSlot(0), start: 0, len: 20, input: TokenInput::Known, sample: None, scores: None };
        let plan = StepPlan { seqs: vec![seq], tokens: vec![0; 20], ..StepPlan::default() };
        let mut executor = pace.executor(10);
        let began = Instant::now();
        let ticket = executor.submit(&plan).unwrap();
        executor.wait(ticket).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(5));
    }
}
