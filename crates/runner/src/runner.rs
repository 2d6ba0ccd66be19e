//! The executor itself: bind slots, lay out the batch, run the model, sample.

use candle_core::Tensor;
use plimsoll_core::{CacheConfig, Executor, ExecutorError, Sampled, SeqSlot, StepOutput, StepPlan, Ticket};
use plimsoll_nn::{ForwardBatch, KvCache, Model};
use plimsoll_ops::sample::sample;

use crate::batch::{self, BatchLimits, PlanFault};
use crate::memory::logit_rows;
use crate::slots::{LastToken, Slots};

/// Sizes that model, cache and scheduler have agreed on.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Slots: sequences that may be live at once.
    pub max_num_seqs: u32,
    /// Input tokens of a step at most.
    pub max_num_batched_tokens: u32,
    /// Tokens of one sequence at most, prompt and output.
    pub max_model_len: u32,
    /// Tokens that the model knows: the width of its logits.
    pub vocab_size: u32,
    /// The shape that the `KvCache` was made with.
    pub cache: CacheConfig,
}

/// Runs one model on one device, in lockstep: `submit` computes the step, `wait` hands its result over.
pub struct Runner {
    model: Box<dyn Model>,
    cache: KvCache,
    pub(crate) slots: Slots,
    limits: BatchLimits,
    /// Logits of a forward pass at most, in rows.
    pub(crate) most_logit_rows: usize,
    finished: Option<StepOutput>,
}

impl Runner {
    pub fn new(model: Box<dyn Model>, cache: KvCache, config: RunnerConfig) -> Self {
        let RunnerConfig { max_num_seqs, max_model_len, vocab_size, cache: cache_config, .. } = config;
        let limits = BatchLimits { cache: cache_config, vocab_size, max_model_len, last_token: LastToken::OnHost };
        let slots = Slots::new(max_num_seqs as usize);
        Self { model, cache, slots, limits, most_logit_rows: logit_rows(max_num_seqs) as usize, finished: None }
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepOutput, StepError> {
        plan.bindings.iter().try_for_each(|binding| self.slots.bind(binding))?;
        let batch = batch::build(plan, &mut self.slots, &self.limits)?;
        if plan.seqs.iter().any(|seq| seq.scores.is_some()) {
            return self.run_scoring(plan, batch);
        }
        let samplers: Vec<(SeqSlot, u32)> =
            plan.seqs.iter().filter_map(|seq| seq.sample.map(|index| (seq.slot, index))).collect();
        let logits = self.forward(&batch)?;
        let samples = if samplers.is_empty() { Vec::new() } else { self.sample(&samplers, &logits)? };
        Ok(StepOutput { step: plan.step, samples, scores: Vec::new() })
    }

    /// Logits, f32 `[logit_rows, vocab]`.
    pub(crate) fn forward(&self, batch: &ForwardBatch) -> Result<Tensor, StepError> {
        let logits = self.model.forward(batch, &self.cache)?;
        let expected = [batch.logit_rows.len(), self.limits.vocab_size as usize];
        if !batch.logit_rows.is_empty() && logits.dims() != expected {
            return Err(StepError::LogitsShape { got: logits.dims().to_vec(), expected });
        }
        Ok(logits)
    }

    /// A token for each sampler, its slot and the token's index; `logits`: `[samplers, vocab]`.
    pub(crate) fn sample(&mut self, samplers: &[(SeqSlot, u32)], logits: &Tensor) -> Result<Vec<Sampled>, StepError> {
        let params = samplers.iter().map(|&(slot, index)| Ok(self.slots.get(slot)?.sample_params(index)));
        let results = sample(logits, &params.collect::<Result<Vec<_>, PlanFault>>()?)?;
        let sampled = samplers.iter().zip(results).map(|(&(slot, _), result)| self.slots.keep(slot, result));
        Ok(sampled.collect::<Result<_, _>>()?)
    }
}

/// Why a step has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error("the step plan is wrong: {0}")]
    Plan(#[from] PlanFault),
    #[error("{0}")]
    Tensor(#[from] candle_core::Error),
    #[error("the model gave logits of shape {got:?} where {expected:?} was expected")]
    LogitsShape { got: Vec<usize>, expected: [usize; 2] },
    #[cfg(feature = "cuda")]
    #[error("prompt tokens are not scored on a GPU: such a request is to be refused at the door")]
    NoScoring,
}

impl Executor for Runner {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        if let Some(waiting) = &self.finished {
            return Err(ExecutorError(format!(
                "step {} was submitted before step {} was waited for",
                plan.step, waiting.step
            )));
        }
        let output = self.run(plan).map_err(|error| ExecutorError(format!("step {}: {error}", plan.step)))?;
        self.finished = Some(output);
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let output = self.finished.take_if(|output| output.step == ticket.0);
        output.ok_or_else(|| ExecutorError(format!("step {} was waited for, but is not in flight", ticket.0)))
    }
}
