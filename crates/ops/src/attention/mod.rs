//! Causal attention of a ragged batch over the paged KV cache (arXiv:2309.06180): any mix of prompt chunks and single
//! decode tokens, grouped-query heads, sliding windows, chunks, sinks, capped scores.
//!
//! On a CPU the softmax is computed online (arXiv:2205.14135) over tiles of [`kernel::TILE`] positions, in segments of
//! [`kernel::SEGMENT`] positions that are merged in order. Tiles and segments lie at fixed positions of the sequence, and
//! a query passes over those it sees, each in one order of additions. So its bits depend on its own context alone, and
//! not on its batch, on the chunk it came in or on how [`plan`] spread the work over threads.
//!
//! On a GPU queries and outputs are bf16, and a step's work is cut once for all layers of a KV group ([`GpuPlan`]).
//!
//! This module must never know layers, models or why a block is where it is.

mod batch;
#[cfg(feature = "cuda")]
mod gpu;
mod kernel;
mod plan;
mod product;
mod scratch;
#[cfg(test)]
mod tests;
mod tile;

use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};
use float8::F8E4M3;
use half::{bf16, f16};

pub use batch::{PagedBatch, PagedTensors};
#[cfg(feature = "cuda")]
pub use gpu::{GpuPlan, GpuShape};
pub use plimsoll_kernels::attention::PlanSize;

use crate::kv_write::LayerCache;
use crate::operand::{Shared, contiguous};
use crate::par::{num_threads, parallel_for};
use crate::simd::Level;
use kernel::{Heads, Kernel};
use plan::Plan;
use tile::KvElement;

/// How scores are made of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Multiplies `q . k`; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// The query at position `p` sees `p - window + 1 ..= p`; `None` sees all up to `p`. At least 1.
    pub window: Option<u32>,
    /// Positions are cut into chunks of so many, and a query sees none before its own (Llama 4). At least 1.
    pub chunk: Option<u32>,
    /// Scores become `softcap * tanh(score / softcap)`. Above 0.
    pub softcap: Option<f32>,
}

impl AttentionParams {
    /// The earliest position that a query at `position` sees; it sees all from there to its own.
    fn first_visible(&self, position: usize) -> usize {
        let window = self.window.map_or(0, |w| (position + 1).saturating_sub(w as usize));
        window.max(self.chunk.map_or(0, |c| position - position % c as usize))
    }
}

/// Attention of every query token over its sequence's cached keys and values, this step's included: write those first
/// ([`crate::kv_write::kv_write`]).
///
/// `q`: f32 `[tokens, heads, head_dim]`, packed as `batch.cu_seqlens` says; head `h` reads KV head
/// `h / (heads / kv_heads)`. Returns f32 `[tokens, heads * head_dim]`.
///
/// # Errors
/// Another rank, dtype or layout; shapes that do not fit the cache; a batch that contradicts itself, names a block
/// outside the cache or lacks a block that a query sees; parameters out of range.
pub fn paged_attention(q: &Tensor, cache: &LayerCache, batch: &PagedBatch, params: &AttentionParams) -> Result<Tensor> {
    paged_attention_with_sinks(q, cache, batch, params, None)
}

/// As [`paged_attention`], with a score that every query of a head has besides those of the keys it sees, and no value
/// (arXiv:2309.17453): what it gets of the softmax is lost to the others. `sinks`: f32 `[heads]`; neither scaled nor
/// capped.
///
/// # Errors
/// As [`paged_attention`], or sinks of another dtype or number.
pub fn paged_attention_with_sinks(
    q: &Tensor,
    cache: &LayerCache,
    batch: &PagedBatch,
    params: &AttentionParams,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    if let Some(sinks) = sinks {
        let heads = q.dims3()?.1;
        if sinks.dims() != [heads] || sinks.dtype() != DType::F32 {
            bail!("paged_attention: sinks are {:?} {:?}, expected F32 [{heads}]", sinks.dtype(), sinks.shape());
        }
    }
    #[cfg(feature = "cuda")]
    if let Some(on_device) = &batch.on_device {
        return gpu::paged_attention(q, cache, on_device, params, sinks);
    }
    let sinks = sinks.map(Tensor::to_vec1).transpose()?;
    let op = PagedAttention { batch, params, sinks, level: Level::detect(), threads: num_threads() };
    q.apply_op3_no_bwd(&cache.k, &cache.v, &op)
}

struct PagedAttention<'a> {
    batch: &'a PagedBatch,
    params: &'a AttentionParams,
    /// `[heads]`
    sinks: Option<Vec<f32>>,
    level: Level,
    /// Work is cut for this many.
    threads: usize,
}

impl CustomOp3 for PagedAttention<'_> {
    fn name(&self) -> &'static str {
        "paged_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, heads) = self.check(ql, kl, vl)?;
        let q = contiguous::<f32>("paged_attention", "q", q, ql)?;
        let out = match k {
            CpuStorage::F32(_) => self.attend::<f32>(q, (k, kl), (v, vl), heads),
            CpuStorage::F16(_) => self.attend::<f16>(q, (k, kl), (v, vl), heads),
            CpuStorage::BF16(_) => self.attend::<bf16>(q, (k, kl), (v, vl), heads),
            CpuStorage::F8E4M3(_) => self.attend::<F8E4M3>(q, (k, kl), (v, vl), heads),
            _ => bail!("paged_attention: the cache must be F32, F16, BF16 or F8E4M3"),
        }?;
        Ok((CpuStorage::F32(out), Shape::from((tokens, heads.query * heads.dim))))
    }
}

impl PagedAttention<'_> {
    /// Everything that could make the kernel read outside its operands.
    fn check(&self, q: &Layout, k: &Layout, v: &Layout) -> Result<(usize, Heads)> {
        let &[tokens, query, dim] = q.dims() else {
            bail!("paged_attention: q is {:?}, expected [tokens, heads, head_dim]", q.shape());
        };
        let &[num_blocks, kv, block_size, cache_dim] = k.dims() else {
            bail!(
                "paged_attention: the cache is {:?}, expected [num_blocks, kv_heads, block_size, head_dim]",
                k.shape()
            );
        };
        if k.shape() != v.shape() {
            bail!("paged_attention: k's cache is {:?} and v's {:?}", k.shape(), v.shape());
        }
        if dim != cache_dim || dim == 0 || kv == 0 || query == 0 || query % kv != 0 {
            bail!("paged_attention: q is {:?}, the cache has {kv} heads of {cache_dim}", q.shape());
        }
        if block_size != self.batch.block_size || block_size == 0 {
            bail!("paged_attention: tables are of blocks of {}, the cache's of {block_size}", self.batch.block_size);
        }
        let AttentionParams { scale, window, chunk, softcap } = *self.params;
        let is_empty = window == Some(0) || chunk == Some(0);
        if !scale.is_finite() || is_empty || softcap.is_some_and(|c| !(c > 0.0 && c.is_finite())) {
            bail!("paged_attention: {:?} is out of range: window, chunk and softcap must be above 0", self.params);
        }
        self.batch.check(tokens, num_blocks, self.params)?;
        Ok((tokens, Heads { query, kv, dim }))
    }

    fn attend<T: KvElement>(
        &self,
        q: &[f32],
        (k, kl): (&CpuStorage, &Layout),
        (v, vl): (&CpuStorage, &Layout),
        heads: Heads,
    ) -> Result<Vec<f32>> {
        let mut out = vec![0.0; q.len()];
        let kernel = Kernel {
            level: self.level,
            q,
            k: contiguous::<T>("paged_attention", "k's cache", k, kl)?,
            v: contiguous::<T>("paged_attention", "v's cache", v, vl)?,
            batch: self.batch,
            params: self.params,
            sinks: self.sinks.as_deref(),
            heads,
        };
        let plan = Plan::new(self.batch, heads, self.params, self.threads);
        let mut partials = vec![0.0; plan.partial_len()];
        let (rows, parts) = (Shared::new(&mut out), Shared::new(&mut partials));
        // SAFETY: each work has a part of `out` or `partials` of its own, which the plan's tests check.
        plan.run(|i| kernel.run(&plan.work[i], |at| unsafe { rows.part(at) }, |at| unsafe { parts.part(at) }));
        // SAFETY: so has each split, and the works are done.
        plan.run_merges(|split| kernel.merge(split, |at| unsafe { rows.part(at) }, |at| unsafe { parts.part(at) }));
        Ok(out)
    }
}

/// Calls `f(0..tasks)`, in parallel if `cost` multiply-adds are worth waking other threads for.
fn for_each(tasks: usize, cost: usize, f: impl Fn(usize) + Sync + Send) {
    const MIN_PARALLEL_COST: usize = 128 * 1024;
    if tasks <= 1 || cost < MIN_PARALLEL_COST { (0..tasks).for_each(f) } else { parallel_for(tasks, f) }
}
