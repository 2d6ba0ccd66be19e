//! What the rest of the house knows of a model: the trait it runs, and the facts it plans memory with.

use candle_core::Tensor;

use crate::{ForwardBatch, KvCache};

/// A causal language model with its weights loaded.
pub trait Model: Send {
    /// Runs the packed tokens of `batch`, writes their keys and values to `cache`, and returns the logits of
    /// `batch.logit_rows`: `[logit_rows, vocab]`, f32.
    ///
    /// # Errors
    /// A device failure, or a batch that does not fit the model or the cache: a token id outside the vocabulary, a
    /// position beyond the context, a block that does not exist.
    fn forward(&self, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<Tensor>;
}

/// What is known of a model before its weights are read; all from its config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// As config.json's `architectures` names it.
    pub architecture: String,
    /// One entry a decoder layer.
    pub layers: Vec<LayerInfo>,
    /// The attention window of each KV group in tokens, the query's own included; `None` sees everything. Layers
    /// with equal windows share a group; full attention, if any layer has it, is group 0.
    pub groups: Vec<Option<u32>>,
    pub vocab_size: usize,
    /// Tokens of context the model was made for.
    pub max_position_embeddings: usize,
    pub hidden_size: usize,
    /// Width of the MLP's inner layer.
    pub intermediate_size: usize,
    pub num_attention_heads: usize,
    /// Of the layers that are mixtures of experts, where there are any.
    pub experts: Option<ExpertsInfo>,
}

/// How wide a mixture of experts is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsInfo {
    /// Experts that each token passes.
    pub top: usize,
    /// Width of one's inner layer.
    pub intermediate_size: usize,
}

/// The cache geometry of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Index into [`ModelInfo::groups`].
    pub group: usize,
}

impl ModelInfo {
    /// Sorts layers into KV groups by their windows: returns the groups, and each layer's group.
    pub fn group_by_window(windows: &[Option<u32>]) -> (Vec<Option<u32>>, Vec<usize>) {
        let mut groups = windows.to_vec();
        groups.sort_unstable();
        groups.dedup();
        let of_layer = windows.iter().map(|w| groups.binary_search(w).expect("every window is in a group")).collect();
        (groups, of_layer)
    }

    /// Bytes of keys and values that one token takes in all layers of `group`, at `element_bytes` a number.
    pub fn kv_bytes_per_token(&self, group: usize, element_bytes: usize) -> u64 {
        let layers = self.layers.iter().filter(|layer| layer.group == group);
        layers.map(|layer| (2 * layer.kv_heads * layer.head_dim * element_bytes) as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_equal_windows_share_a_group_and_full_attention_comes_first() {
        let (groups, of_layer) = ModelInfo::group_by_window(&[Some(512), Some(512), None, Some(128), None]);
        assert_eq!(groups, [None, Some(128), Some(512)]);
        assert_eq!(of_layer, [2, 2, 0, 1, 0]);
        assert_eq!(ModelInfo::group_by_window(&[Some(4)]), (vec![Some(4)], vec![0]));
    }

    #[test]
    fn a_token_takes_keys_and_values_in_every_layer_of_its_group() {
        let layer = |kv_heads, group| LayerInfo { kv_heads, head_dim: 64, group };
        let info = ModelInfo {
            architecture: String::new(),
            layers: vec![layer(2, 0), layer(1, 1), layer(3, 0)],
            groups: vec![None, Some(8)],
            vocab_size: 1,
            max_position_embeddings: 1,
            hidden_size: 1,
            intermediate_size: 1,
            num_attention_heads: 6,
            experts: None,
        };
        assert_eq!(info.kv_bytes_per_token(0, 2), 2 * (2 + 3) * 64 * 2);
        assert_eq!(info.kv_bytes_per_token(1, 4), 2 * 64 * 4);
    }
}
