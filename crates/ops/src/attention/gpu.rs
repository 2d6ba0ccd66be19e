//! Attention on a GPU.

use candle_core::{DType, Device, Result, Tensor, bail};
use plimsoll_kernels::attention::{Attention, AttentionPlan, KvDtype as Element, KvGroup, PagedBatchView, PlanSize};
use plimsoll_kernels::{DevicePtr, Queue};

use super::{AttentionParams, PagedBatch, PagedTensors};
use crate::cuda::{Cuda, address, launch_error};
use crate::kv_write::{KvDtype, LayerCache};

/// The attention of a KV group's layers, which must be alike.
#[derive(Clone, Copy, Debug)]
pub struct GpuShape {
    group: KvGroup,
    multiprocessors: u32,
}

/// A step's attention in one KV group, cut into pieces of work for all its layers.
#[derive(Clone, Debug)]
pub struct GpuPlan {
    plan: AttentionPlan,
}

impl GpuShape {
    /// For query heads and KV heads of `head_dim`, a cache in blocks of `block_size` tokens, and the layers' window.
    ///
    /// # Errors
    /// `device` is no opened GPU, or the cache's elements are of a kind that no kernel reads.
    pub fn new(
        (heads, kv_heads, head_dim): (usize, usize, usize),
        window: Option<u32>,
        block_size: usize,
        dtype: KvDtype,
        device: &Device,
    ) -> Result<Self> {
        let group = KvGroup {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            block_size: block_size as u32,
            dtype: element(dtype)?,
            window,
            chunk: None,
        };
        Ok(Self { group, multiprocessors: Cuda::of(device)?.queue().multiprocessors() })
    }

    pub fn group(&self) -> KvGroup {
        self.group
    }

    /// Room for the plan of any step of so many sequences with one query token each.
    pub fn decode_size(&self, seqs: usize) -> PlanSize {
        PlanSize::decode(&self.group, seqs as u32, self.multiprocessors)
    }

    /// Elements of a workspace, f32, for any step of so many tokens and sequences.
    pub fn workspace_len(&self, tokens: usize, seqs: usize) -> usize {
        let size = PlanSize::mixed(&self.group, tokens as u32, seqs as u32, self.multiprocessors);
        size.workspace_bytes(&self.group).div_ceil(size_of::<f32>())
    }
}

impl GpuPlan {
    /// # Errors
    /// The lists of `batch` contradict each other, or a table does not reach over the positions that are seen.
    pub fn new(batch: &PagedBatch, shape: &GpuShape) -> Result<Self> {
        let view = PagedBatchView {
            cu_seqlens: &batch.cu_seqlens,
            seq_lens: &batch.seq_lens,
            block_offsets: &batch.block_offsets,
            first_block: &batch.first_block,
        };
        let plan = AttentionPlan::new(&view, &shape.group, shape.multiprocessors).map_err(launch_error)?;
        Ok(Self { plan })
    }

    /// The least room it takes.
    pub fn size(&self) -> PlanSize {
        self.plan.size()
    }

    /// What is uploaded, laid out for `size`: `size.words()` words.
    ///
    /// # Errors
    /// There is not so much room.
    pub fn words(&self, size: &PlanSize) -> Result<Vec<u32>> {
        self.plan.words(size).map_err(launch_error)
    }
}

/// See [`super::paged_attention_with_sinks`].
pub(super) fn paged_attention(
    q: &Tensor,
    cache: &LayerCache,
    on_device: &PagedTensors,
    params: &AttentionParams,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let (tokens, heads, head_dim) = q.dims3()?;
    let group = on_device.group;
    let (num_blocks, kv_heads, block_size, _) = cache.k.dims4()?;
    let fits = (heads, kv_heads, head_dim, block_size)
        == (group.heads as usize, group.kv_heads as usize, group.head_dim as usize, group.block_size as usize);
    if !fits || params.window != group.window || params.chunk.is_some_and(|chunk| Some(chunk) != group.window) {
        bail!("paged_attention: q {:?}, cache {:?}, {params:?} do not fit {group:?}", q.shape(), cache.k.shape());
    }
    let cuda = Cuda::of(q.device())?;
    let out = cuda.empty((tokens, heads * head_dim), DType::BF16)?;
    let op = "paged_attention";
    let attention = Attention {
        out: address(op, "out", &out, DType::BF16)?,
        q: address(op, "q", q, DType::BF16)?,
        k_cache: address(op, "k's cache", &cache.k, cache.k.dtype())?,
        v_cache: address(op, "v's cache", &cache.v, cache.k.dtype())?,
        num_blocks: num_blocks as u32,
        blocks: address(op, "blocks", &on_device.blocks, DType::U32)?,
        plan: address(op, "plan", &on_device.plan, DType::U32)?,
        workspace: address(op, "workspace", &on_device.workspace, DType::F32)?,
        sinks: match sinks {
            Some(sinks) => address(op, "sinks", sinks, DType::F32)?,
            None => DevicePtr::NULL,
        },
        scale: params.scale,
        softcap: params.softcap,
        k_scale: 1.0,
        v_scale: 1.0,
    };
    // A layer of chunks is planned for as one of a window as long: what it does not see besides it passes over.
    let group = KvGroup { chunk: params.chunk, ..group };
    attention.run(cuda.queue(), &group, &on_device.size).map_err(launch_error)?;
    Ok(out)
}

/// As the kernels name it.
fn element(dtype: KvDtype) -> Result<Element> {
    match dtype {
        KvDtype::BF16 => Ok(Element::Bf16),
        KvDtype::Fp8 => Ok(Element::Fp8),
        other => bail!("a {other:?} KV cache is not served on a GPU: choose bf16 or fp8 with --kv-cache-dtype"),
    }
}
