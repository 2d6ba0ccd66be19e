//! A model with its executor and a scheduler on a device, put together as the server does it.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use plimsoll_core::Executor;
use plimsoll_nn::{Checkpoint, KvCache, ModelInfo, Weights};
use plimsoll_ops::gpu;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::{Activations, Placement};
use plimsoll_runner::{MemoryBudget, MemoryLimits, MemoryPlan, RunnerConfig, executor};
use plimsoll_sched::{Policy, SchedulerConfig, WaitingLimits};
use serde_json::Value;

use crate::traffic::Traffic;

const BLOCK_SIZE: u32 = 16;

/// What is loaded.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A folder of safetensors.
    Checkpoint(&'a Path),
    /// A config.json, for random weights at its shapes.
    Dummy(&'a Path),
}

/// How much is to run at once.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub max_model_len: u32,
    /// Tokens that the KV cache holds, over all sequences.
    pub cached_tokens: u32,
}

/// A model that is ready to run.
pub struct Opened {
    pub executor: Box<dyn Executor>,
    pub scheduler: SchedulerConfig,
    pub info: ModelInfo,
    pub traffic: Traffic,
    pub kv_dtype: KvDtype,
}

impl Opened {
    /// Bytes of keys and values that a step reads for one sequence of `context` tokens.
    pub fn kv_bytes(&self, context: u64) -> u64 {
        let seen = |window: Option<u32>| window.map_or(context, |window| context.min(u64::from(window)));
        let groups = self.info.groups.iter().enumerate();
        groups.map(|(group, &window)| self.kv_bytes_per_token(group) * seen(window)).sum()
    }

    fn kv_bytes_per_token(&self, group: usize) -> u64 {
        self.info.kv_bytes_per_token(group, self.kv_dtype.size_in_bytes())
    }
}

/// # Errors
/// The model is not implemented, or memory does not suffice.
pub fn open(source: Source<'_>, sizes: Sizes, device: &Device) -> Result<Opened> {
    let checkpoint = match source {
        Source::Checkpoint(path) => Some(Checkpoint::open(path)?),
        Source::Dummy(_) => None,
    };
    let config = match (&checkpoint, source) {
        (Some(checkpoint), _) => checkpoint.config().clone(),
        (None, Source::Dummy(path) | Source::Checkpoint(path)) => read_json(path)?,
    };
    let info = (plimsoll_models::find(&config)?.info)(&config)?;
    let kv_dtype = if device.is_cuda() { KvDtype::BF16 } else { KvDtype::F32 };
    let placement = if device.is_cuda() { Placement::Gpu(device.clone()) } else { Placement::Cpu(Activations::F32) };
    let load = plimsoll_models::find(&config)?.load;
    let (model, stored) = match &checkpoint {
        Some(checkpoint) => {
            let weights = Weights::new(checkpoint, placement, |_, _| ())?;
            let model = load(&config, &weights)?;
            weights.finish()?;
            (model, checkpoint.weight_bytes())
        }
        None => {
            let weights = Weights::dummy(&config, 0, placement, |_| ())?;
            (load(&config, &weights)?, plimsoll_models::dummy_bytes(&config)?)
        }
    };
    if device.is_cuda() {
        gpu::give_back_free_memory(device)?;
    }
    let plan = plan(&info, stored, sizes, kv_dtype)?;
    let cache = KvCache::new(&info, &plan.blocks_per_group(), BLOCK_SIZE as usize, kv_dtype, device)?;
    let runner = RunnerConfig {
        max_num_seqs: sizes.max_num_seqs,
        max_num_batched_tokens: sizes.max_num_batched_tokens,
        max_model_len: sizes.max_model_len,
        vocab_size: info.vocab_size as u32,
        cache: plan.cache_config(),
    };
    Ok(Opened {
        executor: executor(model, cache, &info, runner, device, |_, _| ())?,
        scheduler: scheduler(sizes, &plan),
        traffic: Traffic::of(&config, &info)?,
        info,
        kv_dtype,
    })
}

fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Room for the tokens that are asked for in every group, and a little more for blocks that are not full.
fn plan(info: &ModelInfo, weights: u64, sizes: Sizes, kv_dtype: KvDtype) -> Result<MemoryPlan> {
    let tokens = u64::from(sizes.cached_tokens.max(sizes.max_model_len) + 2 * BLOCK_SIZE * sizes.max_num_seqs);
    let a_token: u64 =
        (0..info.groups.len()).map(|group| info.kv_bytes_per_token(group, kv_dtype.size_in_bytes())).sum();
    let limits = MemoryLimits {
        budget: MemoryBudget::KvCache(tokens * a_token),
        max_model_len: sizes.max_model_len,
        max_num_seqs: sizes.max_num_seqs,
        max_num_batched_tokens: sizes.max_num_batched_tokens,
        block_size: BLOCK_SIZE,
        steps_in_flight: 2,
        kv_dtype,
        activation_bytes: 2,
        captured_tokens: sizes.max_num_seqs,
        overhead: 0,
    };
    Ok(MemoryPlan::new(info, weights, &limits)?)
}

fn scheduler(sizes: Sizes, plan: &MemoryPlan) -> SchedulerConfig {
    SchedulerConfig {
        cache: plan.cache_config(),
        max_num_seqs: sizes.max_num_seqs,
        max_num_batched_tokens: sizes.max_num_batched_tokens,
        max_model_len: sizes.max_model_len,
        max_waiting: WaitingLimits { requests: u32::MAX, prompt_tokens: u64::MAX },
        policy: Policy::Fcfs,
        prefix_caching: false,
    }
}
