//! The plan of a device's memory, made before any weight is read: weights, the workspace of a step, and the KV cache,
//! whose blocks are shared out among the KV groups.
//!
//! Arithmetic on a [`ModelInfo`] and limits alone: it must never ask the machine, or allocate, anything.
//!
//! How the KV cache is shared: a sequence holds all its tokens in a full-attention group, but in a windowed group only
//! those that its window and the current chunk reach. So a windowed group gets blocks for `max_num_seqs` sequences at
//! that reach, though never more than the full groups (no sequence holds more tokens there), and the rest of the
//! budget goes to the full groups.

use std::fmt;

use plimsoll_core::{CacheConfig, KvGroup};
use plimsoll_nn::{ExpertsInfo, ModelInfo};
use plimsoll_ops::kv_write::KvDtype;

/// Beyond any real limit, and low enough that a request's token slots are counted in 32 bits.
const LARGEST_LIMIT: u32 = 1 << 24;

/// What memory may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBudget {
    /// Bytes for the KV cache alone (`--kv-cache-memory`), whatever else is needed.
    KvCache(u64),
    /// Bytes for weights, workspace and KV cache together; the KV cache gets what the others leave.
    Total(u64),
}

/// What the plan must make room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    pub budget: MemoryBudget,
    /// Tokens of one sequence at most.
    pub max_model_len: u32,
    /// Sequences that run at once at most.
    pub max_num_seqs: u32,
    /// Input tokens of a step at most.
    pub max_num_batched_tokens: u32,
    /// Tokens a block.
    pub block_size: u32,
    /// Steps that the executor has in flight at most: a windowed group's blocks are freed when a step is committed.
    pub steps_in_flight: u32,
    pub kv_dtype: KvDtype,
    /// Bytes of an activation: 4 on a CPU, 2 on a GPU.
    pub activation_bytes: u64,
    /// Tokens of the largest captured step, which holds activations of its own; 0 where none is captured.
    pub captured_tokens: u32,
    /// Bytes that the device's libraries and captured steps take, beside all that is computed with.
    pub overhead: u64,
}

/// Where the memory goes, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    pub weights: u64,
    /// Activations of the largest step and the logits of the largest batch; an estimate.
    pub workspace: u64,
    /// Libraries and captured steps; an estimate.
    pub overhead: u64,
    pub kv_cache: u64,
    /// Tokens a block.
    pub block_size: u32,
    /// In the order of [`ModelInfo::groups`].
    pub groups: Vec<GroupPlan>,
    /// Requests of `max_model_len` tokens that the KV cache holds at once; at least 1.
    pub full_length_requests: u32,
    pub max_model_len: u32,
}

/// One KV group's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    pub window: Option<u32>,
    /// Layers in the group.
    pub layers: usize,
    pub num_blocks: u32,
    pub bytes: u64,
}

/// Why the memory does not suffice, and what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    #[error(
        "the weights ({}) and the workspace of a step ({}) leave nothing of the {} that may be used for the KV cache: \
         free memory, choose a smaller model or quantization, or lower --max-num-batched-tokens or --max-num-seqs",
        bytes(.weights), bytes(.workspace), bytes(.budget)
    )]
    ModelTooLarge { weights: u64, workspace: u64, budget: u64 },
    #[error(
        "one request of --max-model-len {max_model_len} needs {} of KV cache and there is room for {}: {}give \
         --kv-cache-memory {needed} or more",
        bytes(.needed), bytes(.available), lower_len(.fitting_len)
    )]
    KvCacheTooSmall {
        max_model_len: u32,
        /// Bytes that one request of `max_model_len` takes.
        needed: u64,
        available: u64,
        /// The longest request that `available` bytes hold.
        fitting_len: u32,
    },
    #[error("{flag} is {value}: set it to at least 1 and at most {LARGEST_LIMIT}")]
    BadLimit { flag: &'static str, value: u32 },
}

fn lower_len(fitting_len: &u32) -> String {
    if *fitting_len < 2 { String::new() } else { format!("lower --max-model-len to {fitting_len} or less, or ") }
}

impl MemoryPlan {
    /// Plans for a model whose weights take `weights` bytes.
    ///
    /// # Errors
    /// Where one request of `max_model_len` would not fit, or a limit is 0.
    pub fn new(info: &ModelInfo, weights: u64, limits: &MemoryLimits) -> Result<Self, MemoryError> {
        check_limits(limits)?;
        let workspace = workspace_bytes(info, limits);
        let budget = match limits.budget {
            MemoryBudget::KvCache(bytes) => bytes,
            MemoryBudget::Total(total) => total
                .checked_sub(weights.saturating_add(workspace).saturating_add(limits.overhead))
                .filter(|left| *left > 0)
                .ok_or(MemoryError::ModelTooLarge {
                    weights,
                    workspace: workspace.saturating_add(limits.overhead),
                    budget: total,
                })?,
        };
        let pools = Pools::of_model(info, limits);
        let num_blocks = pools.share_out(budget)?;
        let layers = |group| info.layers.iter().filter(|layer| layer.group == group).count();
        let groups: Vec<_> = (pools.groups.iter().zip(&num_blocks).enumerate())
            .map(|(group, (pool, &num_blocks))| {
                let bytes = pool.block_bytes * u64::from(num_blocks);
                GroupPlan { window: pool.window, layers: layers(group), num_blocks, bytes }
            })
            .collect();
        Ok(Self {
            weights,
            workspace,
            overhead: limits.overhead,
            kv_cache: groups.iter().map(|group| group.bytes).sum(),
            block_size: limits.block_size,
            groups,
            full_length_requests: pools.requests_held(&num_blocks),
            max_model_len: limits.max_model_len,
        })
    }

    /// Bytes of KV cache that `seqs` sequences of `len` tokens take, under `limits` but for their budget.
    pub fn kv_bytes(info: &ModelInfo, limits: &MemoryLimits, seqs: u32, len: u32) -> u64 {
        let pools = Pools::of_model(info, limits);
        let blocks: Vec<u64> = pools.groups.iter().map(|pool| pool.blocks_for(seqs, len, limits)).collect();
        pools.bytes(&blocks)
    }

    /// Bytes that a step takes beside weights and KV cache; an estimate.
    pub fn workspace_bytes(info: &ModelInfo, limits: &MemoryLimits) -> u64 {
        workspace_bytes(info, limits)
    }

    /// All parts together, in bytes.
    pub fn total(&self) -> u64 {
        [self.weights, self.workspace, self.overhead, self.kv_cache].into_iter().fold(0, u64::saturating_add)
    }

    /// Blocks of each KV group.
    pub fn blocks_per_group(&self) -> Vec<u32> {
        self.groups.iter().map(|group| group.num_blocks).collect()
    }

    /// The cache's shape, as scheduler and executor are told it.
    pub fn cache_config(&self) -> CacheConfig {
        let groups = self.groups.iter().map(|g| KvGroup { window: g.window, num_blocks: g.num_blocks }).collect();
        CacheConfig { block_size: self.block_size, groups }
    }
}

fn check_limits(limits: &MemoryLimits) -> Result<(), MemoryError> {
    let flags = [
        ("--max-model-len", limits.max_model_len),
        ("--max-num-seqs", limits.max_num_seqs),
        ("--max-num-batched-tokens", limits.max_num_batched_tokens),
        ("--block-size", limits.block_size),
        ("steps in flight", limits.steps_in_flight),
    ];
    match flags.into_iter().find(|(_, value)| !(1..=LARGEST_LIMIT).contains(value)) {
        Some((flag, value)) => Err(MemoryError::BadLimit { flag, value }),
        None => Ok(()),
    }
}

/// What a step of the largest size holds at its widest point: the residual stream, its normed copy, an
/// attention or MLP output beside them, and the widest intermediate (queries, keys and values with the attention's
/// output, or gate and up with their product, or the inner and outer features of every expert of a token's); then the logits of [`logit_rows`] rows, in f32.
fn workspace_bytes(info: &ModelInfo, limits: &MemoryLimits) -> u64 {
    const F32: u64 = 4;
    let heads = info.num_attention_heads as u64;
    let qkv = |l: &plimsoll_nn::LayerInfo| mul(2 * heads + 2 * l.kv_heads as u64, l.head_dim as u64);
    let attention = info.layers.iter().map(qkv).max().unwrap_or(0);
    let of_experts = |e: &ExpertsInfo| mul(e.top as u64, (e.intermediate_size + info.hidden_size) as u64);
    let experts = info.experts.as_ref().map_or(0, of_experts);
    let widest = attention.max(mul(3, info.intermediate_size as u64)).max(experts);
    let a_token = mul(3, info.hidden_size as u64).saturating_add(widest);
    let tokens = u64::from(limits.max_num_batched_tokens) + u64::from(limits.captured_tokens);
    let activations = mul(a_token, tokens);
    let logits = mul(info.vocab_size as u64, u64::from(logit_rows(limits.max_num_seqs)));
    mul(activations, limits.activation_bytes).saturating_add(mul(logits, F32))
}

/// Rows of logits that stand at once: one a sequence that samples, or of prompt tokens that are scored, so many at a time.
pub(crate) fn logit_rows(max_num_seqs: u32) -> u32 {
    /// Fewer would cut a prompt into parts too small to compute well.
    const LEAST: u32 = 32;
    max_num_seqs.max(LEAST)
}

/// A model's config is not trusted: absurd sizes become "too large", not a wrapped number.
fn mul(a: u64, b: u64) -> u64 {
    a.saturating_mul(b)
}

/// The block pools to be sized.
struct Pools {
    groups: Vec<Pool>,
    limits: MemoryLimits,
}

struct Pool {
    window: Option<u32>,
    block_bytes: u64,
}

impl Pool {
    /// Blocks that `seqs` sequences of at most `len` tokens hold at once at most.
    ///
    /// A run of `n` tokens that starts anywhere touches at most `(n + block_size - 2) / block_size + 1` blocks. In a
    /// windowed group a sequence holds a run of `window - 1` earlier tokens and what the steps in flight compute for
    /// it; and all sequences together have `max_num_batched_tokens` computed in a step.
    fn blocks_for(&self, seqs: u32, len: u32, limits: &MemoryLimits) -> u64 {
        let (seqs, block_size) = (u64::from(seqs), u64::from(limits.block_size));
        let unwindowed = mul(seqs, u64::from(len).div_ceil(block_size));
        let Some(window) = self.window else { return unwindowed };
        let in_flight = mul(u64::from(limits.max_num_batched_tokens), u64::from(limits.steps_in_flight));
        let tokens = mul(seqs, (u64::from(window) + block_size).saturating_sub(3)).saturating_add(in_flight);
        unwindowed.min((tokens / block_size).saturating_add(seqs))
    }
}

impl Pools {
    fn of_model(info: &ModelInfo, limits: &MemoryLimits) -> Self {
        let element = limits.kv_dtype.size_in_bytes();
        let pool = |(group, &window): (usize, &Option<u32>)| Pool {
            window,
            // A group that no layer is in takes no memory, and would get blocks without end.
            block_bytes: mul(info.kv_bytes_per_token(group, element).max(1), u64::from(limits.block_size)),
        };
        Self { groups: info.groups.iter().enumerate().map(pool).collect(), limits: *limits }
    }

    /// Blocks of each group so that all fit into `budget` bytes, as the module's doc has it.
    fn share_out(&self, budget: u64) -> Result<Vec<u32>, MemoryError> {
        let MemoryLimits { max_model_len, max_num_seqs, block_size, .. } = self.limits;
        let needed = self.bytes(&self.one_request(max_model_len));
        if needed > budget {
            let fitting_len = last(max_model_len, |len| self.bytes(&self.one_request(len)) <= budget);
            return Err(MemoryError::KvCacheTooSmall { max_model_len, needed, available: budget, fitting_len });
        }
        // First windows for as many sequences as fit beside one full-length request, then length for all.
        let fits = |blocks: &[u64]| self.bytes(blocks) <= budget;
        let shortest = max_model_len.div_ceil(block_size);
        let seqs = last(max_num_seqs, |seqs| fits(&self.shares(seqs, shortest)));
        if seqs < max_num_seqs {
            return Ok(self.shares(seqs, shortest).into_iter().map(narrow).collect());
        }
        // Token slots are addressed in 32 bits.
        let longest = last(u32::MAX / block_size, |blocks| fits(&self.shares(seqs, blocks)));
        Ok(self.shares(seqs, longest).into_iter().map(narrow).collect())
    }

    /// Blocks of each group where full groups have `full` and windows are sized for `seqs` sequences.
    fn shares(&self, seqs: u32, full: u32) -> Vec<u64> {
        let share = |pool: &Pool| match pool.window {
            None => u64::from(full),
            Some(_) => pool.blocks_for(seqs, self.limits.max_model_len, &self.limits).min(u64::from(full)),
        };
        self.groups.iter().map(share).collect()
    }

    /// Blocks of each group that one request of `len` tokens takes.
    fn one_request(&self, len: u32) -> Vec<u64> {
        self.groups.iter().map(|pool| pool.blocks_for(1, len, &self.limits)).collect()
    }

    fn bytes(&self, blocks: &[u64]) -> u64 {
        let sizes = self.groups.iter().zip(blocks).map(|(pool, &blocks)| mul(pool.block_bytes, blocks));
        sizes.fold(0, u64::saturating_add)
    }

    /// Requests of `max_model_len` tokens that fit at once.
    fn requests_held(&self, num_blocks: &[u32]) -> u32 {
        let fits = |seqs| {
            let need = |pool: &Pool| pool.blocks_for(seqs, self.limits.max_model_len, &self.limits);
            self.groups.iter().zip(num_blocks).all(|(pool, &blocks)| need(pool) <= u64::from(blocks))
        };
        last(self.limits.max_num_seqs, fits)
    }
}

/// The last of `1..=to` that `holds`, which no later one does once one does not; 0 where none does.
fn last(to: u32, holds: impl Fn(u32) -> bool) -> u32 {
    let (mut good, mut bad) = (0, u64::from(to) + 1);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if holds(middle as u32) { good = middle } else { bad = middle }
    }
    good as u32
}

/// Shares are bounded by the full groups' `u32`.
fn narrow(blocks: u64) -> u32 {
    u32::try_from(blocks).expect("a share is at most the full groups' 32-bit number of blocks")
}

fn bytes(bytes: &u64) -> Bytes {
    Bytes(*bytes)
}

/// Prints bytes in the largest binary unit that leaves a number above 1.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if value < 1024.0 {
                break;
            }
            (value, unit) = (value / 1024.0, larger);
        }
        if unit == "B" { write!(f, "{value} {unit}") } else { write!(f, "{value:.1} {unit}") }
    }
}

/// A small table, one part a line.
impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        row(f, "weights", self.weights)?;
        row(f, "workspace (estimate)", self.workspace)?;
        if self.overhead > 0 {
            row(f, "graphs and libraries (estimate)", self.overhead)?;
        }
        row(f, "KV cache", self.kv_cache)?;
        for group in &self.groups {
            let reach = group.window.map_or("full attention".to_owned(), |window| format!("window of {window}"));
            let tokens = u64::from(group.num_blocks) * u64::from(self.block_size);
            let label = format!("  {} layers, {reach}", group.layers);
            cells(f, &label, group.bytes)?;
            writeln!(f, "   {:>8} blocks, {tokens:>9} tokens", group.num_blocks)?;
        }
        row(f, "total", self.total())?;
        write!(f, "room for {} requests of {} tokens at once", self.full_length_requests, self.max_model_len)
    }
}

fn row(f: &mut fmt::Formatter<'_>, label: &str, bytes: u64) -> fmt::Result {
    cells(f, label, bytes)?;
    writeln!(f)
}

/// One unit for all rows, so that they can be added up by eye.
fn cells(f: &mut fmt::Formatter<'_>, label: &str, bytes: u64) -> fmt::Result {
    write!(f, "{label:<30}{:>10.1} MiB", bytes as f64 / f64::from(1 << 20))
}
