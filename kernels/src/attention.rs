//! Causal attention of a ragged batch over the paged KV cache (`attention_decode.cu`, `attention_prefill.cu`): any mix
//! of prompt chunks and decode tokens, grouped-query heads, sliding windows, chunks, sinks, capped scores.
//!
//! [`AttentionPlan`] cuts a step's work once for all layers of a KV group; [`Attention::run`] is one layer's launches.
//! Under a CUDA graph both are made for a [`PlanSize`], and only the contents of buffers change.

mod plan;

use std::f32::consts::LOG2_E;

use crate::{Arg, DevicePtr, Launch, LaunchError, Queue};

pub use plan::{AttentionPlan, PagedBatchView, PlanSize};

/// What the cache's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KvDtype {
    Bf16,
    /// e4m3, with one scale for a layer's keys and one for its values.
    Fp8,
}

impl KvDtype {
    /// Bytes an element.
    pub fn size_in_bytes(self) -> u32 {
        match self {
            KvDtype::Bf16 => 2,
            KvDtype::Fp8 => 1,
        }
    }
}

/// What the layers of a KV group have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvGroup {
    pub heads: u32,
    /// Head `h` reads KV head `h / (heads / kv_heads)`; at most 16 heads read the same.
    pub kv_heads: u32,
    /// 16, 32, 64, 128 or 256; with an fp8 cache from 64.
    pub head_dim: u32,
    /// Tokens a block: a multiple of 16 up to 256.
    pub block_size: u32,
    pub dtype: KvDtype,
    /// The query at position `p` sees `p - window + 1 ..= p`; `None` sees all up to `p`.
    pub window: Option<u32>,
    /// The query at position `p` sees none before the last multiple of `chunk` (Llama 4).
    pub chunk: Option<u32>,
}

impl KvGroup {
    /// Query heads a KV head.
    fn ratio(&self) -> u32 {
        self.heads / self.kv_heads
    }

    /// The earliest position that a query at `position` sees.
    fn first_visible(&self, position: u32) -> u32 {
        let window = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        window.max(self.chunk.map_or(0, |c| position / c * c))
    }

    /// Rows (query token x head) of a prefill tile: `Prefill::ROWS` of attention/prefill.cuh.
    fn prefill_rows(&self) -> u32 {
        if self.head_dim <= 128 { 128 } else { 64 }
    }

    /// Query tokens of a prefill tile.
    fn prefill_tile(&self) -> u32 {
        self.prefill_rows() / self.ratio()
    }

    fn row_bytes(&self) -> u32 {
        self.head_dim * self.dtype.size_in_bytes()
    }

    fn check(&self) -> Result<(), String> {
        variant(self.head_dim, self.dtype)?;
        let Self { heads, kv_heads, block_size, .. } = *self;
        if kv_heads == 0 || heads == 0 || !heads.is_multiple_of(kv_heads) || heads / kv_heads > 16 {
            return Err(format!("{heads} heads and {kv_heads} KV heads: 1 to 16 heads a KV head are needed"));
        }
        if block_size == 0 || !block_size.is_multiple_of(16) || block_size > 256 {
            return Err(format!("blocks of {block_size} tokens: a multiple of 16 up to 256 is needed"));
        }
        if self.window == Some(0) || self.chunk == Some(0) {
            return Err("window and chunk must be above 0".to_owned());
        }
        Ok(())
    }
}

/// One layer's attention.
pub struct Attention {
    /// bf16 `[tokens, heads, head_dim]`, written.
    pub out: DevicePtr,
    /// bf16 `[tokens, heads, head_dim]`.
    pub q: DevicePtr,
    /// `[num_blocks, kv_heads, block_size, head_dim]`, this step's keys included.
    pub k_cache: DevicePtr,
    /// As `k_cache`.
    pub v_cache: DevicePtr,
    pub num_blocks: u32,
    /// u32: the packed block tables.
    pub blocks: DevicePtr,
    /// u32 `[size.words()]`: [`AttentionPlan::words`]. Used and left as it was.
    pub plan: DevicePtr,
    /// `size.workspace_bytes(group)`; anything may be in it.
    pub workspace: DevicePtr,
    /// f32 `[heads]`: a score that every query of the head has besides those of the keys, or [`DevicePtr::NULL`].
    pub sinks: DevicePtr,
    /// Multiplies `q . k`; usually `1 / sqrt(head_dim)`. Above 0.
    pub scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`. Above 0.
    pub softcap: Option<f32>,
    /// A key is `fp8 * k_scale`; not used with a bf16 cache.
    pub k_scale: f32,
    /// As `k_scale`.
    pub v_scale: f32,
}

impl Attention {
    /// Launches what a plan laid out for `size` needs. Rows of `out` that belong to no sequence are not written.
    ///
    /// # Errors
    /// Shapes or parameters that the kernels were not made for, or the device refuses.
    pub fn run(&self, queue: &dyn Queue, group: &KvGroup, size: &PlanSize) -> Result<(), LaunchError> {
        group.check().map_err(unsupported)?;
        let positive = |x: f32| x > 0.0 && x.is_finite();
        if !positive(self.scale) || !self.softcap.is_none_or(positive) {
            return Err(unsupported(format!("scale {} and softcap {:?} must be above 0", self.scale, self.softcap)));
        }
        let variant = variant(group.head_dim, group.dtype).map_err(unsupported)?;
        for (counter, items, at, kernel) in [
            (1, size.prefill_items, size.prefill_at(), prefill_kernel(group, variant)),
            (0, size.decode_items, size.decode_at(), decode_kernel(group, variant)),
        ] {
            if items > 0 {
                let args = self.args(group, size, counter, at);
                let grid = [items * group.kv_heads, 1, 1];
                let Kernel { name, threads, shared_bytes } = kernel;
                queue.launch(&Launch { kernel: name, grid, threads, shared_bytes, args: &args })?;
            }
        }
        Ok(())
    }

    fn args(&self, group: &KvGroup, size: &PlanSize, counter: usize, items_at: usize) -> [Arg; 19] {
        let (k_scale, v_scale) = match group.dtype {
            KvDtype::Bf16 => (1.0, 1.0),
            KvDtype::Fp8 => (self.k_scale, self.v_scale),
        };
        let scale = self.scale * k_scale;
        let (log2_scale, cap_scale) = match self.softcap {
            Some(cap) => (cap * LOG2_E, scale / cap),
            None => (scale * LOG2_E, 0.0),
        };
        let word = |at: usize| self.plan.byte_add(at * size_of::<u32>());
        [
            self.out.into(),
            self.q.into(),
            self.k_cache.into(),
            self.v_cache.into(),
            self.blocks.into(),
            word(counter).into(),
            word(items_at).into(),
            word(size.tickets_at()).into(),
            self.workspace.into(),
            self.sinks.into(),
            group.heads.into(),
            group.kv_heads.into(),
            group.block_size.into(),
            self.num_blocks.into(),
            group.window.unwrap_or(0).into(),
            group.chunk.unwrap_or(0).into(),
            log2_scale.into(),
            cap_scale.into(),
            v_scale.into(),
        ]
    }
}

/// An entry point and the shape of its blocks.
struct Kernel {
    name: &'static str,
    threads: u32,
    shared_bytes: u32,
}

/// The constants of `Decode` in attention/decode.cuh.
fn decode_kernel(group: &KvGroup, variant: usize) -> Kernel {
    const NAMES: [&str; 8] = [
        "attention_decode_d16_bf16",
        "attention_decode_d32_bf16",
        "attention_decode_d64_bf16",
        "attention_decode_d128_bf16",
        "attention_decode_d256_bf16",
        "attention_decode_d64_fp8",
        "attention_decode_d128_fp8",
        "attention_decode_d256_fp8",
    ];
    let stage = 2 * 16 * group.row_bytes();
    let stages = if stage <= 4096 { 4 } else { 2 };
    let warps = if stage <= 8192 { 4 } else { 2 };
    let shared_bytes = (warps * stages * stage).max(parts_bytes(group, warps * plan::DECODE_ROWS));
    Kernel { name: NAMES[variant], threads: 32 * warps, shared_bytes }
}

/// The constants of `Prefill` in attention/prefill.cuh.
fn prefill_kernel(group: &KvGroup, variant: usize) -> Kernel {
    const NAMES: [&str; 8] = [
        "attention_prefill_d16_bf16",
        "attention_prefill_d32_bf16",
        "attention_prefill_d64_bf16",
        "attention_prefill_d128_bf16",
        "attention_prefill_d256_bf16",
        "attention_prefill_d64_fp8",
        "attention_prefill_d128_fp8",
        "attention_prefill_d256_fp8",
    ];
    let rows = group.prefill_rows();
    let bytes = rows * group.head_dim * 2 + 2 * 2 * 32 * group.row_bytes();
    Kernel { name: NAMES[variant], threads: 128, shared_bytes: bytes.max(parts_bytes(group, rows)) }
}

/// `SharedParts` of attention/finish.cuh.
fn parts_bytes(group: &KvGroup, rows: u32) -> u32 {
    rows * (group.head_dim + 2) * 4
}

/// Which of eight entry points takes this cache: bf16 of 16, 32, 64, 128, 256, then fp8 of 64, 128, 256.
pub(crate) fn variant(head_dim: u32, dtype: KvDtype) -> Result<usize, String> {
    let (dims, first): (&[u32], usize) = match dtype {
        KvDtype::Bf16 => (&[16, 32, 64, 128, 256], 0),
        KvDtype::Fp8 => (&[64, 128, 256], 5),
    };
    let found = dims.iter().position(|dim| *dim == head_dim);
    found
        .map(|i| first + i)
        .ok_or_else(|| format!("head_dim {head_dim} with a {dtype:?} cache: one of {dims:?} is needed"))
}

fn unsupported(problem: String) -> LaunchError {
    LaunchError::Unsupported { kernel: "attention", problem }
}
