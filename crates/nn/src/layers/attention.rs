//! Grouped-query attention over the paged cache: projections, optional q/k norms, RoPE, the cache write, an
//! optional temperature, the product.

use candle_core::{Result, Tensor};
use plimsoll_ops::attention::{AttentionParams, paged_attention_with_sinks};
use plimsoll_ops::linear::Linear;
use plimsoll_ops::rope::RopeTable;
use plimsoll_ops::rope_kv_write::{QkNorm, RopeKvWrite, rope_kv_write};
use plimsoll_ops::temperature::{Temperature, scale_queries};

use super::RmsNorm;
use crate::{CheckpointError, ForwardBatch, KvCache, Weights};

/// Grouped-query attention over the paged cache, with rotary positions (arXiv:2305.13245, arXiv:2104.09864).
pub struct Attention {
    /// Index of the decoder layer, which names its cache.
    layer: usize,
    shape: AttentionShape,
    /// Rows: all query heads, then all key heads, then all value heads.
    qkv: Linear,
    output: Linear,
    rope: RopeTable,
    params: AttentionParams,
    /// Norms of each query and each key head, where the model has them.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    /// f32 `[heads]`, where the model has them.
    sinks: Option<Tensor>,
    temperature: Option<Temperature>,
}

/// The dimensions of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    pub hidden: usize,
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    /// Even.
    pub head_dim: usize,
}

/// Features of all heads together: no real model's come near.
const MOST_FEATURES: usize = 1 << 21;

impl AttentionShape {
    /// # Errors
    /// Heads that do not divide into groups, a head dimension that cannot be rotated, or absurdly many features.
    pub fn check(&self) -> std::result::Result<(), CheckpointError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let problem = format!("is {}, which does not divide num_attention_heads {}", self.kv_heads, self.heads);
            return Err(CheckpointError::config("num_key_value_heads", problem));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(CheckpointError::config("head_dim", format!("is {}; it must be even", self.head_dim)));
        }
        // Key heads are no more than heads.
        match self.heads.checked_mul(self.head_dim) {
            Some(features) if features <= MOST_FEATURES => Ok(()),
            _ => {
                let problem = format!("is {}, which {} heads must not have", self.head_dim, self.heads);
                Err(CheckpointError::config("head_dim", format!("{problem}: at most {MOST_FEATURES} features in all")))
            }
        }
    }
}

impl Attention {
    /// # Errors
    /// Missing or misshapen tensors.
    pub fn new(
        layer: usize,
        shape: AttentionShape,
        params: AttentionParams,
        rope: RopeTable,
        weights: &Weights<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(layer, shape, params, rope, |parts, width| weights.linear(parts, width))
    }

    /// As [`Attention::new`], with a bias on each projection.
    ///
    /// # Errors
    /// As [`Attention::new`].
    pub fn with_biases(
        layer: usize,
        shape: AttentionShape,
        params: AttentionParams,
        rope: RopeTable,
        weights: &Weights<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        Self::load(layer, shape, params, rope, |parts, width| weights.linear_with_bias(parts, width))
    }

    fn load(
        layer: usize,
        shape: AttentionShape,
        params: AttentionParams,
        rope: RopeTable,
        linear: impl Fn(&[(&str, usize)], usize) -> std::result::Result<Linear, CheckpointError>,
    ) -> std::result::Result<Self, CheckpointError> {
        let AttentionShape { hidden, heads, kv_heads, head_dim } = shape;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv = linear(&[("q_proj", q), ("k_proj", kv), ("v_proj", kv)], hidden)?;
        let output = linear(&[("o_proj", hidden)], q)?;
        Ok(Self { layer, shape, qkv, output, rope, params, qk_norm: None, sinks: None, temperature: None })
    }

    /// Gives each head a score besides its keys', f32 `[heads]`.
    pub fn with_sinks(self, sinks: Tensor) -> Self {
        Self { sinks: Some(sinks), ..self }
    }

    /// Normalizes each head's query and key, `[head_dim]` each, before they are rotated.
    pub fn with_qk_norm(self, q_norm: RmsNorm, k_norm: RmsNorm) -> Self {
        Self { qk_norm: Some((q_norm, k_norm)), ..self }
    }

    /// Makes queries longer the further they are into their sequence.
    pub fn with_temperature(self, temperature: Temperature) -> Self {
        Self { temperature: Some(temperature), ..self }
    }

    /// `x`: `[tokens, hidden]`. Writes the tokens' keys and values to the cache, attends to all that are there, and
    /// returns `[tokens, hidden]`.
    ///
    /// # Errors
    /// A batch that does not fit the cache, or a device failure.
    pub fn forward(&self, x: &Tensor, batch: &ForwardBatch, cache: &KvCache) -> Result<Tensor> {
        let (layer_cache, group) = cache.layer(self.layer);
        let paged = &batch.groups[group];
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let op = RopeKvWrite {
            heads,
            kv_heads,
            head_dim,
            qk_norm: self.qk_norm.as_ref().map(|(q, k)| QkNorm {
                q_weight: q.weight(),
                k_weight: k.weight(),
                eps: q.eps(),
            }),
            table: &self.rope,
            positions: batch.positions(),
            cache: layer_cache,
            batch: paged,
        };
        let mut q = rope_kv_write(&self.qkv.forward(x)?, &op)?;
        if let Some(temperature) = &self.temperature {
            q = scale_queries(&q, batch.positions(), temperature)?;
        }
        let sinks = self.sinks.as_ref();
        self.output.forward(&paged_attention_with_sinks(&q, layer_cache, paged, &self.params, sinks)?)
    }
}
