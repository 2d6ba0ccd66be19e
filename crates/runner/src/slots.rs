//! What the executor keeps of each sequence between steps: its request, its last sampled token, and the counts that
//! the penalties need. A sequence keeps its slot from its first step to its last, so preemption leaves this alone.

use std::sync::Arc;

use plimsoll_core::{PromptSpan, Request, SampleFault, Sampled, SeqSlot, SlotBinding, TokenId, TokenLogprobs};
use plimsoll_ops::sample::{SampleParams, SampleResult, TokenCounts, WantedScore};

use crate::batch::PlanFault;

/// Where the token is that a sequence sampled last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastToken {
    OnHost,
    /// In a table in the device's memory, by slot. The host may not know it yet.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "only a GPU keeps tokens"))]
    OnDevice,
}

/// The state of one bound slot.
pub(crate) struct SlotState {
    request: Arc<Request>,
    pub(crate) last_sampled: Option<TokenId>,
    /// Empty where the request uses no penalties.
    counts: TokenCounts,
    uses_penalties: bool,
    /// Tokens that steps in flight will sample.
    awaited: u32,
    /// The last step this slot ran in, to notice one that stands in a plan twice.
    used_in: u64,
}

impl SlotState {
    fn new(request: Arc<Request>) -> Self {
        let counts = TokenCounts::default();
        let mut state = Self { request, last_sampled: None, counts, uses_penalties: false, awaited: 0, used_in: 0 };
        state.uses_penalties = state.sample_params(0).uses_counts();
        if state.uses_penalties {
            state.counts.add_prompt(&state.request.prompt);
        }
        state
    }

    /// How the sequence's token number `index` is chosen.
    pub(crate) fn sample_params(&self, index: u32) -> SampleParams<'_> {
        let (sampling, stop) = (&self.request.sampling, &self.request.stop);
        SampleParams {
            logit_bias: &sampling.logit_bias,
            allowed: sampling.allowed_token_ids.as_deref(),
            banned: if index < stop.min_tokens { &stop.stop_token_ids } else { &[] },
            counts: &self.counts,
            repetition_penalty: sampling.repetition_penalty,
            frequency_penalty: sampling.frequency_penalty,
            presence_penalty: sampling.presence_penalty,
            logprobs: sampling.logprobs,
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: sampling.seed,
            index,
        }
    }

    /// Whether the request wants prompt tokens scored and has all before position `to`.
    pub(crate) fn may_score(&self, to: u32) -> bool {
        self.request.sampling.prompt_logprobs.is_some() && to as usize <= self.request.prompt.len()
    }

    /// What is asked of each prompt token in `span`.
    pub(crate) fn wanted_scores(&self, span: PromptSpan) -> impl Iterator<Item = WantedScore> {
        let top = self.request.sampling.prompt_logprobs.unwrap_or(0);
        let tokens = &self.request.prompt[span.from as usize..span.to as usize];
        tokens.iter().map(move |&token| WantedScore { token, top })
    }

    /// Whether a token has been sampled, or is being sampled by a step in flight.
    pub(crate) fn has_last_token(&self) -> bool {
        self.last_sampled.is_some() || self.awaited > 0
    }

    /// Notes that a step was queued which samples a token.
    #[cfg(feature = "cuda")]
    pub(crate) fn await_token(&mut self) {
        self.awaited += 1;
    }

    /// Whether there is a last token that the counts do not have yet.
    #[cfg(feature = "cuda")]
    pub(crate) fn awaits_token(&self) -> bool {
        self.awaited > 0
    }

    /// Remembers a token that was just sampled.
    pub(crate) fn push_sampled(&mut self, token: TokenId) {
        self.last_sampled = Some(token);
        if self.uses_penalties {
            self.counts.add_output(token);
        }
    }
}

/// All slots, by their index.
pub(crate) struct Slots {
    states: Vec<Option<SlotState>>,
    /// Counts steps from 1.
    step: u64,
}

impl Slots {
    pub(crate) fn new(num_slots: usize) -> Self {
        Self { states: std::iter::repeat_with(|| None).take(num_slots).collect(), step: 0 }
    }

    /// Ties a slot to a request; whatever it held before is forgotten.
    pub(crate) fn bind(&mut self, binding: &SlotBinding) -> Result<(), PlanFault> {
        let num_slots = self.states.len();
        let place = self.states.get_mut(binding.slot.0 as usize);
        let place = place.ok_or(PlanFault::NoSuchSlot(binding.slot, num_slots))?;
        *place = Some(SlotState::new(Arc::clone(&binding.request)));
        Ok(())
    }

    pub(crate) fn get(&self, slot: SeqSlot) -> Result<&SlotState, PlanFault> {
        let place = self.states.get(slot.0 as usize).ok_or(PlanFault::NoSuchSlot(slot, self.states.len()))?;
        place.as_ref().ok_or(PlanFault::UnboundSlot(slot))
    }

    pub(crate) fn get_mut(&mut self, slot: SeqSlot) -> Result<&mut SlotState, PlanFault> {
        let num_slots = self.states.len();
        let place = self.states.get_mut(slot.0 as usize).ok_or(PlanFault::NoSuchSlot(slot, num_slots))?;
        place.as_mut().ok_or(PlanFault::UnboundSlot(slot))
    }

    /// Records a sample in its slot and puts it into the output's form.
    pub(crate) fn keep(&mut self, slot: SeqSlot, result: Option<SampleResult>) -> Result<Sampled, PlanFault> {
        let state = self.get_mut(slot)?;
        state.awaited = state.awaited.saturating_sub(1);
        let Some(result) = result else {
            return Ok(Sampled { slot, token: Err(SampleFault::NonFiniteLogits), logprobs: None });
        };
        state.push_sampled(result.token);
        let logprobs = result.logprob.map(|logprob| Box::new(TokenLogprobs { logprob, top: result.top }));
        Ok(Sampled { slot, token: Ok(result.token), logprobs })
    }

    /// Forgets which slots the last step used.
    pub(crate) fn begin_step(&mut self) {
        self.step += 1;
    }

    /// Notes that a slot runs in this step; a slot does so once.
    pub(crate) fn mark_used(&mut self, slot: SeqSlot) -> Result<(), PlanFault> {
        let step = self.step;
        let state = self.get_mut(slot)?;
        if state.used_in == step {
            return Err(PlanFault::SlotTwice(slot));
        }
        state.used_in = step;
        Ok(())
    }
}
