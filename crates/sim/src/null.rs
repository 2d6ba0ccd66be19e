//! An executor without a model: each token follows from the request's seed and the token's index.

use std::collections::VecDeque;
use std::sync::Arc;

use plimsoll_core::{
    Executor, ExecutorError, PromptLogprobs, PromptScores, Request, SampleFault, Sampled, ScheduledSeq, SeqSlot,
    StepOutput, StepPlan, Ticket, TokenId, TokenLogprobs,
};

use crate::rng::{mix, scale, unit};

/// What a [`NullExecutor`] makes up.
#[derive(Clone, Debug, PartialEq)]
pub struct NullConfig {
    /// Tokens are in `0..vocab_size`.
    pub vocab_size: u32,
    /// Varies the tokens of all requests together.
    pub seed: u64,
    /// Probability that a token is the request's first stop token, once its `min_tokens` are reached. Stop tokens
    /// come in no other way, unless the request allows nothing else.
    pub stop_probability: f64,
    /// Probability that a sample is a fault instead of a token.
    pub fault_probability: f64,
    /// What [`Executor::max_in_flight`] says.
    pub max_in_flight: usize,
}

impl Default for NullConfig {
    fn default() -> Self {
        Self { vocab_size: 32_000, seed: 0, stop_probability: 0.0, fault_probability: 0.0, max_in_flight: 1 }
    }
}

/// Runs every step at once, in about 100 ns a row. The same request always gets the same tokens, whatever runs beside
/// it, however it is chunked, preempted or cached.
#[derive(Debug)]
pub struct NullExecutor {
    config: NullConfig,
    bound: Vec<Option<Arc<Request>>>,
    done: VecDeque<StepOutput>,
}

impl NullExecutor {
    /// # Panics
    /// If `config.vocab_size` or `config.max_in_flight` is 0.
    pub fn new(config: NullConfig) -> Self {
        assert!(config.vocab_size > 0, "vocab_size is 0: a token must be some number");
        assert!(config.max_in_flight > 0, "max_in_flight is 0: nothing could ever run");
        Self { config, bound: Vec::new(), done: VecDeque::new() }
    }

    /// Generated token number `index` (from 0) of a request.
    ///
    /// # Errors
    /// The fault that stands in its place, with the configured probability.
    pub fn token(config: &NullConfig, request: &Request, index: u32) -> Result<TokenId, SampleFault> {
        let key = mix(mix(config.seed ^ mix(request.sampling.seed)).wrapping_add(u64::from(index)));
        let draw = |purpose: u64| mix(key.wrapping_add(purpose));
        if unit(draw(1)) < config.fault_probability {
            return Err(SampleFault::NonFiniteLogits);
        }
        let stop = &request.stop;
        if let Some(&token) = stop.stop_token_ids.first()
            && index >= stop.min_tokens
            && unit(draw(2)) < config.stop_probability
        {
            return Ok(token);
        }
        let choices = request.sampling.allowed_token_ids.as_deref();
        let count = choices.map_or(u64::from(config.vocab_size), |ids| ids.len() as u64);
        let choice = |at: u64| choices.map_or(at as TokenId, |ids| ids[at as usize]);
        let first = scale(draw(3), count);
        let mut inside = (0..count).map(|step| choice((first + step) % count));
        Ok(inside.find(|token| !stop.stop_token_ids.contains(token)).unwrap_or(choice(first)))
    }

    /// What is made up for the prompt token at `position`: a probability and a rank that follow from the request's seed,
    /// and no alternatives.
    pub fn prompt_logprobs(config: &NullConfig, request: &Request, position: u32) -> PromptLogprobs {
        let key = mix(mix(config.seed ^ mix(request.sampling.seed)).wrapping_sub(u64::from(position)));
        let rank = 1 + scale(key, u64::from(config.vocab_size)) as u32;
        PromptLogprobs { logprob: -(rank as f32), rank, top: Vec::new() }
    }

    fn request(&self, slot: SeqSlot) -> Result<&Request, ExecutorError> {
        let request = self.bound.get(slot.0 as usize).and_then(Option::as_deref);
        request.ok_or_else(|| ExecutorError(format!("slot {} was never bound", slot.0)))
    }

    fn scores(&self, seq: &ScheduledSeq) -> Option<Result<PromptScores, ExecutorError>> {
        let span = seq.scores?;
        let of_request = |request| {
            let logprobs = (span.from..span.to).map(|at| Self::prompt_logprobs(&self.config, request, at)).collect();
            PromptScores { slot: seq.slot, logprobs: Ok(logprobs) }
        };
        Some(self.request(seq.slot).map(of_request))
    }

    fn sample(&self, slot: SeqSlot, index: u32) -> Result<Sampled, ExecutorError> {
        let request = self.request(slot)?;
        let token = Self::token(&self.config, request, index);
        let logprobs = match (request.sampling.logprobs, token) {
            (Some(top), Ok(token)) => Some(Box::new(self.logprobs(token, top))),
            _ => None,
        };
        Ok(Sampled { slot, token, logprobs })
    }

    /// The sampled token is always the likeliest, and the `n`th token after it is half as likely as the one before.
    fn logprobs(&self, token: TokenId, top: u32) -> TokenLogprobs {
        let logprob = |rank: u32| -((rank + 1) as f32) * std::f32::consts::LN_2;
        let nth = |rank: u32| ((u64::from(token) + u64::from(rank)) % u64::from(self.config.vocab_size)) as TokenId;
        TokenLogprobs {
            logprob: logprob(0),
            top: (0..top.min(self.config.vocab_size)).map(|rank| (nth(rank), logprob(rank))).collect(),
        }
    }
}

impl Executor for NullExecutor {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        for binding in &plan.bindings {
            let slot = binding.slot.0 as usize;
            if self.bound.len() <= slot {
                self.bound.resize(slot + 1, None);
            }
            self.bound[slot] = Some(Arc::clone(&binding.request));
        }
        let rows = plan.seqs.iter().filter_map(|seq| seq.sample.map(|index| (seq.slot, index)));
        let samples = rows.map(|(slot, index)| self.sample(slot, index)).collect::<Result<_, _>>()?;
        let scores = plan.seqs.iter().filter_map(|seq| self.scores(seq)).collect::<Result<_, _>>()?;
        self.done.push_back(StepOutput { step: plan.step, samples, scores });
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        match self.done.pop_front() {
            Some(output) if output.step == ticket.0 => Ok(output),
            _ => Err(ExecutorError(format!("step {} was waited for out of order", ticket.0))),
        }
    }

    fn max_in_flight(&self) -> usize {
        self.config.max_in_flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::{RequestId, SamplingParams, SlotBinding, StopConditions, TokenInput};

    fn request(seed: u64) -> Request {
        Request {
            id: RequestId(seed),
            prompt: vec![1, 2, 3],
            sampling: SamplingParams { seed, ..SamplingParams::default() },
            stop: StopConditions { max_tokens: 8, min_tokens: 0, stop_token_ids: vec![2, 5] },
            priority: 0,
        }
    }

    fn tokens(config: &NullConfig, request: &Request, count: u32) -> Vec<Result<TokenId, SampleFault>> {
        (0..count).map(|index| NullExecutor::token(config, request, index)).collect()
    }

    #[test]
    fn tokens_follow_from_the_request_and_stay_in_the_vocabulary() {
        let config = NullConfig { vocab_size: 10, ..NullConfig::default() };
        let drawn = tokens(&config, &request(1), 1000);
        assert_eq!(drawn, tokens(&config, &request(1), 1000));
        assert_ne!(drawn, tokens(&config, &request(2), 1000));
        assert_ne!(drawn, tokens(&NullConfig { seed: 1, ..config }, &request(1), 1000));
        for token in 0..10 {
            assert_eq!(drawn.contains(&Ok(token)), token != 2 && token != 5, "token {token} (2 and 5 are stop tokens)");
        }
        assert!(drawn.iter().all(|token| token.is_ok_and(|token| token < 10)));
    }

    #[test]
    fn stops_come_with_their_probability_and_not_before_min_tokens() {
        let config = NullConfig { stop_probability: 0.5, ..NullConfig::default() };
        let mut request = request(3);
        request.stop.min_tokens = 100;
        let drawn = tokens(&config, &request, 1100);
        assert!(!drawn[..100].contains(&Ok(2)));
        let stops = drawn[100..].iter().filter(|token| **token == Ok(2)).count();
        assert!((400..600).contains(&stops), "{stops} of 1000");
    }

    #[test]
    fn only_allowed_tokens_come() {
        let mut request = request(4);
        request.sampling.allowed_token_ids = Some(vec![5, 7, 9]);
        let drawn = tokens(&NullConfig::default(), &request, 100);
        assert!(drawn.contains(&Ok(7)) && drawn.contains(&Ok(9)));
        assert!(drawn.iter().all(|token| matches!(token, Ok(7 | 9))), "5 is a stop token");
        request.sampling.allowed_token_ids = Some(vec![5]);
        assert_eq!(tokens(&NullConfig::default(), &request, 1), [Ok(5)], "nothing else is allowed");
    }

    #[test]
    fn answers_in_order_with_logprobs_where_asked() {
        let mut executor = NullExecutor::new(NullConfig { max_in_flight: 2, ..NullConfig::default() });
        let mut with_logprobs = request(6);
        with_logprobs.sampling.logprobs = Some(2);
        let plan = |step, bindings| StepPlan {
            step,
            bindings,
            seqs: vec![ScheduledSeq {
                slot: SeqSlot(3),
                start: 0,
                len: 3,
                input: TokenInput::Known,
                sample: Some(0),
                scores: None,
            }],
            ..StepPlan::default()
        };
        assert!(executor.submit(&plan(0, vec![])).is_err(), "slot 3 is not bound");
        let binding = SlotBinding { slot: SeqSlot(3), request: Arc::new(with_logprobs.clone()) };
        let first = executor.submit(&plan(0, vec![binding])).unwrap();
        let second = executor.submit(&plan(1, vec![])).unwrap();
        let output = executor.wait(first).unwrap();
        let expected = NullExecutor::token(&NullConfig::default(), &with_logprobs, 0);
        assert_eq!((output.step, output.samples[0].token), (0, expected));
        let logprobs = output.samples[0].logprobs.as_ref().unwrap();
        assert_eq!((logprobs.top.len(), logprobs.top[0]), (2, (expected.unwrap(), logprobs.logprob)));
        assert!(executor.wait(Ticket(7)).is_err(), "{second:?} is next");
    }
}
