//! From the merged projection to attention's inputs, as one op: norms of the query and key heads where the model has
//! them, rotary positions, and the write of keys and values to the paged cache.

use candle_core::{Result, Tensor, bail};

use crate::attention::PagedBatch;
use crate::indices::Indices;
use crate::kv_write::{LayerCache, kv_write};
use crate::norm::rms_norm;
use crate::rope::{RopeTable, rope};

/// What stands beside the projection's output.
#[derive(Clone, Copy)]
pub struct RopeKvWrite<'a> {
    /// Query heads.
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub qk_norm: Option<QkNorm<'a>>,
    pub table: &'a RopeTable,
    /// `[tokens]`.
    pub positions: Indices<'a>,
    pub cache: &'a LayerCache,
    pub batch: &'a PagedBatch,
}

/// RMS norms of each query head and each key head, before they are rotated.
#[derive(Clone, Copy)]
pub struct QkNorm<'a> {
    /// f32 `[head_dim]`.
    pub q_weight: &'a Tensor,
    /// f32 `[head_dim]`.
    pub k_weight: &'a Tensor,
    pub eps: f32,
}

/// `qkv`: `[tokens, (heads + 2 * kv_heads) * head_dim]`: all query heads, then all key heads, then all value heads.
/// Returns the queries, normed and rotated: `[tokens, heads, head_dim]`, contiguous. The keys, treated alike, and the
/// values are in the cache then.
///
/// # Errors
/// As [`rope`], [`rms_norm`] and [`kv_write`]; nothing has been written to the cache then.
pub fn rope_kv_write(qkv: &Tensor, op: &RopeKvWrite<'_>) -> Result<Tensor> {
    let RopeKvWrite { heads, kv_heads, head_dim, .. } = *op;
    let (tokens, width) = qkv.dims2()?;
    if width != (heads + 2 * kv_heads) * head_dim {
        bail!("rope_kv_write: qkv is {:?}, expected {heads} + 2 * {kv_heads} heads of {head_dim}", qkv.shape());
    }
    let part = |first: usize, count: usize| {
        qkv.narrow(1, first * head_dim, count * head_dim)?.contiguous()?.reshape((tokens, count, head_dim))
    };
    let (mut q, mut k) = (part(0, heads)?, part(heads, kv_heads)?);
    let v = part(heads + kv_heads, kv_heads)?;
    if let Some(norm) = &op.qk_norm {
        q = per_head(&q, norm.q_weight, norm.eps)?;
        k = per_head(&k, norm.k_weight, norm.eps)?;
    }
    let q = rope(&q, op.positions.host, op.table)?;
    let k = rope(&k, op.positions.host, op.table)?;
    kv_write(&k, &v, op.cache, op.batch)?;
    Ok(q)
}

/// Normalizes the last dimension of `[tokens, heads, head_dim]`.
fn per_head(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    rms_norm(&x.flatten_to(1)?, weight, eps)?.reshape(x.shape())
}
