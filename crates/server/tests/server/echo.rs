//! A device that repeats the prompt, token by token, and then stops; and a gate that holds its steps.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};

use plimsoll_core::{
    Executor, ExecutorError, PromptLogprobs, PromptScores, Request, SampleFault, Sampled, SeqSlot, StepOutput,
    StepPlan, Ticket, TokenId, TokenLogprobs,
};

/// Repeating this token fails instead.
pub(crate) const FAULTY_TOKEN: TokenId = 261;

/// Lets steps end: all of them, or as many as were allowed.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<Option<u64>>, Condvar)>);

impl Gate {
    /// From now on steps end only as they are allowed.
    pub(crate) fn close(&self) {
        *self.0.0.lock().unwrap() = Some(0);
    }

    /// Lets all steps end again.
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = None;
        self.0.1.notify_all();
    }

    /// Lets `steps` more steps end.
    pub(crate) fn allow(&self, steps: u64) {
        if let Some(allowed) = &mut *self.0.0.lock().unwrap() {
            *allowed += steps;
        }
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let mut allowed = self.0.1.wait_while(self.0.0.lock().unwrap(), |allowed| *allowed == Some(0)).unwrap();
        if let Some(allowed) = &mut *allowed {
            *allowed -= 1;
        }
    }
}

/// Token `i` of a request's output is token `i` of its prompt; after the last comes its first stop token, or the
/// prompt again where it has none.
pub(crate) struct EchoExecutor {
    gate: Gate,
    bound: HashMap<SeqSlot, Arc<Request>>,
    plan: Option<StepPlan>,
}

impl EchoExecutor {
    pub(crate) fn new(gate: Gate) -> Self {
        Self { gate, bound: HashMap::new(), plan: None }
    }

    fn token(request: &Request, index: usize) -> TokenId {
        match (request.prompt.get(index), request.stop.stop_token_ids.first()) {
            (Some(&token), _) => token,
            (None, Some(&stop)) => stop,
            (None, None) => request.prompt[index % request.prompt.len()],
        }
    }

    fn sample(&self, slot: SeqSlot, index: u32) -> Sampled {
        let request = &self.bound[&slot];
        let token = Self::token(request, index as usize);
        if token == FAULTY_TOKEN {
            return Sampled { slot, token: Err(SampleFault::NonFiniteLogits), logprobs: None };
        }
        let logprobs = request.sampling.logprobs.map(|count| {
            let top = (0..count).map(|rank| (token + rank, -0.5 - rank as f32)).collect();
            Box::new(TokenLogprobs { logprob: -0.5, top })
        });
        Sampled { slot, token: Ok(token), logprobs }
    }
}

impl EchoExecutor {
    /// The prompt's token `i` has log probability `-i` and rank `i`; the alternatives are those of a sampled one.
    fn scores(&self, plan: &StepPlan) -> Vec<PromptScores> {
        let scores = |seq: &plimsoll_core::ScheduledSeq| {
            let (span, request) = (seq.scores?, &self.bound[&seq.slot]);
            let count = request.sampling.prompt_logprobs.expect("asked for");
            let score = |at: u32| {
                let token = request.prompt[at as usize];
                let top = (0..count).map(|rank| (token + 1 + rank, -0.5 - rank as f32)).collect();
                PromptLogprobs { logprob: -(at as f32), rank: at, top }
            };
            Some(PromptScores { slot: seq.slot, logprobs: Ok((span.from..span.to).map(score).collect()) })
        };
        plan.seqs.iter().filter_map(scores).collect()
    }
}

impl Executor for EchoExecutor {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        for binding in &plan.bindings {
            self.bound.insert(binding.slot, Arc::clone(&binding.request));
        }
        self.plan = Some(plan.clone());
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, _: Ticket) -> Result<StepOutput, ExecutorError> {
        self.gate.pass();
        let plan = self.plan.take().expect("a step was submitted");
        let rows = plan.seqs.iter().filter_map(|seq| seq.sample.map(|index| (seq.slot, index)));
        let samples = rows.map(|(slot, index)| self.sample(slot, index)).collect();
        Ok(StepOutput { step: plan.step, samples, scores: self.scores(&plan) })
    }
}
