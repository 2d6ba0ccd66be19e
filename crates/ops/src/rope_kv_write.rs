//! From the merged projection to attention's inputs, as one op: norms of the query and key heads where the model has
//! them, rotary positions, and the write of keys and values to the paged cache. On a GPU `qkv` and the queries are bf16,
//! and it is one kernel.

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
    #[cfg(feature = "cuda")]
    if let (Some(positions), Some(on_device)) = (op.positions.device, &op.batch.on_device) {
        return cuda::rope_kv_write(qkv, op, positions, on_device);
    }
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

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Result, Tensor, bail};
    use plimsoll_kernels::DevicePtr;
    use plimsoll_kernels::rope_kv_write::RopeKvWrite as Kernel;

    use super::RopeKvWrite;
    use crate::attention::PagedTensors;
    use crate::cuda::{Cuda, address, launch_error};

    pub(super) fn rope_kv_write(
        qkv: &Tensor,
        op: &RopeKvWrite<'_>,
        positions: &Tensor,
        on_device: &PagedTensors,
    ) -> Result<Tensor> {
        const OP: &str = "rope_kv_write";
        let RopeKvWrite { heads, kv_heads, head_dim, cache, .. } = *op;
        let (tokens, width) = qkv.dims2()?;
        let (num_blocks, cache_heads, block_size, cache_dim) = cache.k.dims4()?;
        let fits = width == (heads + 2 * kv_heads) * head_dim
            && (cache_heads, cache_dim) == (kv_heads, head_dim)
            && positions.dims() == [tokens]
            && on_device.slot_mapping.dims() == [tokens];
        if !fits {
            bail!(
                "{OP}: qkv {:?} and cache {:?} do not fit {heads} and {kv_heads} heads of {head_dim}",
                qkv.shape(),
                cache.k.shape()
            );
        }
        let cuda = Cuda::of(qkv.device())?;
        let q = cuda.empty((tokens, heads, head_dim), DType::BF16)?;
        let weight = |name: &str, weight: Option<&Tensor>| match weight {
            Some(weight) => address(OP, name, weight, DType::F32),
            None => Ok(DevicePtr::NULL),
        };
        let inv_freq = op.table.inv_freq_on(qkv.device())?;
        let kernel = Kernel {
            q: address(OP, "q", &q, DType::BF16)?,
            k_cache: address(OP, "k's cache", &cache.k, cache.k.dtype())?,
            v_cache: address(OP, "v's cache", &cache.v, cache.k.dtype())?,
            qkv: address(OP, "qkv", qkv, DType::BF16)?,
            q_norm: weight("q_norm", op.qk_norm.map(|norm| norm.q_weight))?,
            k_norm: weight("k_norm", op.qk_norm.map(|norm| norm.k_weight))?,
            inv_freq: address(OP, "inv_freq", &inv_freq, DType::F32)?,
            positions: address(OP, "positions", positions, DType::U32)?,
            slot_mapping: address(OP, "slot_mapping", &on_device.slot_mapping, DType::U32)?,
            tokens: tokens as u32,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rotary_dim: op.table.rotary_dim() as u32,
            num_blocks: num_blocks as u32,
            block_size: block_size as u32,
            kv_dtype: on_device.group.dtype,
            eps: op.qk_norm.map_or(0.0, |norm| norm.eps),
            attention_scale: op.table.attention_scale(),
            k_scale: 1.0,
            v_scale: 1.0,
        };
        kernel.run(cuda.queue()).map_err(launch_error)?;
        Ok(q)
    }
}
