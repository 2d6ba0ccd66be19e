//! One step of the batch: what the scheduler wants computed ([`StepPlan`]) and what came of it ([`StepOutput`]).

use std::sync::Arc;

use crate::{BlockId, PromptLogprobs, Request, SeqSlot, TokenId, TokenLogprobs};

/// Everything an executor needs to run one step. A plan names slots, never the values of tokens still in flight,
/// so that step N+1 can be planned while step N runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// Counts up by one a plan.
    pub step: u64,
    /// Slots that start a new request in this step. Bind before anything else.
    pub bindings: Vec<SlotBinding>,
    /// The sequences of this step, each slot at most once.
    pub seqs: Vec<ScheduledSeq>,
    /// Input tokens of all `seqs`, packed in their order; `sum(seq.len)` long. The one entry of a sequence whose
    /// input is [`TokenInput::LastSampled`] is a placeholder (0).
    pub tokens: Vec<TokenId>,
    /// Block tables, one entry a KV group, rows in the order of `seqs`.
    pub tables: Vec<GroupTables>,
}

/// Ties a slot to a request: its state (penalty counts, last token, seed) starts afresh.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotBinding {
    pub slot: SeqSlot,
    pub request: Arc<Request>,
}

/// One sequence's share of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledSeq {
    pub slot: SeqSlot,
    /// Position of the first input token; as many tokens are in the KV cache already.
    pub start: u32,
    /// Input tokens in this step; at least 1.
    pub len: u32,
    pub input: TokenInput,
    /// `Some(i)`: sample after the last input token; it becomes generated token number `i` (from 0).
    pub sample: Option<u32>,
    /// Prompt tokens whose log probabilities are to be reported.
    pub scores: Option<PromptSpan>,
}

/// Prompt tokens at positions `from..to`, never none. `from` is at least 1: each token's distribution is that after the
/// token before it, so the rows `from - 1..to - 1` are wanted, which lie within the sequence's share of the step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSpan {
    pub from: u32,
    pub to: u32,
}

/// Where a sequence's input tokens come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenInput {
    /// From `StepPlan::tokens`.
    Known,
    /// The token that the slot sampled last (`len` is 1).
    LastSampled,
}

/// The block tables of one KV group in compressed-row form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTables {
    /// `seqs.len() + 1` long; row `i` is `blocks[offsets[i]..offsets[i + 1]]`.
    pub offsets: Vec<u32>,
    /// Logical index (position / block_size) of each row's first block: above 0 where a window let blocks go.
    pub first_block: Vec<u32>,
    pub blocks: Vec<BlockId>,
}

impl GroupTables {
    /// Sequence `row`'s blocks, and the logical index of the first.
    pub fn row(&self, row: usize) -> (u32, &[BlockId]) {
        let (from, to) = (self.offsets[row] as usize, self.offsets[row + 1] as usize);
        (self.first_block[row], &self.blocks[from..to])
    }
}

impl StepPlan {
    /// Input tokens of this step.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Sequences that sample in this step.
    pub fn num_samples(&self) -> usize {
        self.seqs.iter().filter(|s| s.sample.is_some()).count()
    }
}

/// What a step produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    pub step: u64,
    /// One entry a sequence with `sample`, in the plan's order.
    pub samples: Vec<Sampled>,
    /// One entry a sequence with `scores`, in the plan's order.
    pub scores: Vec<PromptScores>,
}

/// The log probabilities of a [`PromptSpan`], one a token, or why there are none.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptScores {
    pub slot: SeqSlot,
    pub logprobs: Result<Vec<PromptLogprobs>, SampleFault>,
}

/// The sampled token of one sequence, or why there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub slot: SeqSlot,
    pub token: Result<TokenId, SampleFault>,
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// A fault that concerns one sequence and leaves the others alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleFault {
    /// The model's logits were not finite.
    NonFiniteLogits,
    /// The device ran out of memory for this request.
    OutOfMemory,
}
