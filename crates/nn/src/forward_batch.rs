//! What one forward pass is given besides the weights and the cache.

use plimsoll_ops::attention::PagedBatch;

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
}
