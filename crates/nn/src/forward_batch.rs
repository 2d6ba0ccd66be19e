//! What one forward pass is given besides the weights and the cache.

use candle_core::Tensor;
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::indices::{Indices, TokenIds};

/// The input of one step: the tokens of all sequences, packed, without padding.
#[derive(Clone, Debug, Default)]
pub struct ForwardBatch {
    /// `[tokens]`, sequence after sequence.
    pub input_ids: Vec<u32>,
    /// `[tokens]`, each token's position in its own sequence, from 0.
    pub positions: Vec<u32>,
    /// The cache layout of each KV group, in the order of [`crate::ModelInfo::groups`].
    pub groups: Vec<PagedBatch>,
    /// Indices into the packed tokens, of those whose logits are wanted. May be empty (a prompt's early chunk).
    pub logit_rows: Vec<u32>,
    /// The same in the GPU's memory, where the step runs on one.
    pub on_device: Option<StepTensors>,
}

/// A step's indices in a GPU's memory. Each may be longer than what the host has, where the step is padded.
#[derive(Clone, Debug)]
pub struct StepTensors {
    /// u32 `[1]`: how many tokens are no padding.
    pub num_tokens: Tensor,
    /// u32 `[tokens]`: a token id; or, with bit 31 set, a slot whose last sampled token is meant.
    pub input_ids: Tensor,
    /// u32 `[slots]`: the token that each slot sampled last.
    pub last_tokens: Tensor,
    /// u32 `[tokens]`.
    pub positions: Tensor,
    /// u32 `[logit_rows]`.
    pub logit_rows: Tensor,
    /// f32 `[logit_rows, vocab]`: where the logits go.
    pub logits: Tensor,
}

impl ForwardBatch {
    /// A batch without a sequence, for a model of so many KV groups: what a GPU's step is padded from.
    pub fn of_padding(groups: usize) -> Self {
        let group = PagedBatch { cu_seqlens: vec![0], block_offsets: vec![0], ..PagedBatch::default() };
        Self { groups: vec![group; groups], ..Self::default() }
    }

    pub(crate) fn num_tokens_on_device(&self) -> Option<&Tensor> {
        self.on_device.as_ref().map(|step| &step.num_tokens)
    }

    pub(crate) fn input_ids(&self) -> TokenIds<'_> {
        let device = self.on_device.as_ref().map(|step| (&step.input_ids, &step.last_tokens));
        TokenIds { host: &self.input_ids, device }
    }

    pub(crate) fn positions(&self) -> Indices<'_> {
        Indices { host: &self.positions, device: self.on_device.as_ref().map(|step| &step.positions) }
    }

    pub(crate) fn logits(&self) -> Option<&Tensor> {
        self.on_device.as_ref().map(|step| &step.logits)
    }

    pub(crate) fn logit_rows(&self) -> Indices<'_> {
        Indices { host: &self.logit_rows, device: self.on_device.as_ref().map(|step| &step.logit_rows) }
    }
}
