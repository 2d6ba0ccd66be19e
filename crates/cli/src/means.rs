//! What a model is run with: the device, its memory's plan, and the executor that is made of both.

use anyhow::{Context, Result, bail, ensure};
use candle_core::Device as TensorDevice;
use plimsoll_core::Executor;
use plimsoll_nn::{Footprint, KvCache, Loading, ModelInfo, Quantize};
use plimsoll_ops::gpu;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::{Activations, Placement};
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan, RunnerConfig};

use crate::bytes::ByteSize;
use crate::config::{Engine, Steps};
use crate::device::{self, Compute};
use crate::options::{ActivationsKind, QuantizeKind};
use crate::source::Source;
use crate::start_times::StartTimes;
use crate::{machine, pull};

/// The KV cache takes this share of the memory that the weights leave, and no more than this, unless told.
const KV_CACHE_SHARE: u64 = 4;
const KV_CACHE_MOST: u64 = 2 << 30;

/// Of a GPU's memory: 512 MiB for captured steps, 128 MiB for what is tried at start, 32 MiB each for cuBLASLt's workspace and
/// FP8's scratch; the rest for libraries. An estimate.
const GPU_OVERHEAD: u64 = 1 << 30;

/// A context this short serves nobody: rather refuse to start.
const SHORTEST_CONTEXT: u32 = 128;

/// What a model is loaded with.
pub(crate) struct Means {
    pub(crate) compute: Compute,
    pub(crate) kv_dtype: KvDtype,
    pub(crate) steps: Steps,
    pub(crate) engine: Engine,
}

impl Means {
    /// # Errors
    /// The device cannot do what is asked of it.
    pub(crate) fn new(compute: Compute, engine: &Engine) -> Result<Self> {
        let kv_dtype = device::kv_dtype(engine.kv_cache_dtype, &compute)?;
        let on_gpu = matches!(compute, Compute::Gpu(_));
        let block = engine.block_size;
        ensure!(!on_gpu || block.is_multiple_of(16), "--block-size is {block}; on a GPU give 16, 32, 64, 128 or 256");
        let steps = engine.steps(on_gpu)?;
        Ok(Self { compute, kv_dtype, steps, engine: engine.clone() })
    }

    /// Bytes of the weights where they are computed with: in a CPU's panels, or on a GPU packed where a kernel reads their
    /// format, else bf16.
    ///
    /// # Errors
    /// A config that is not implemented.
    pub(crate) fn weight_bytes(&self, source: &Source) -> Result<u64> {
        match self.compute {
            Compute::Null(_) => Ok(0),
            Compute::Cpu => source.weight_bytes(self.engine.quantize.map(quantize), Footprint::Cpu),
            Compute::Gpu(_) => source.weight_bytes(self.engine.quantize.map(quantize), Footprint::Gpu),
        }
    }

    /// Bytes that may be allocated.
    ///
    /// # Errors
    /// The GPU does not tell.
    pub(crate) fn available(&self) -> Result<u64> {
        match &self.compute {
            Compute::Gpu(device) => {
                Ok((gpu::info(device)?.free_memory as f64 * self.engine.gpu_memory_utilization) as u64)
            }
            Compute::Cpu | Compute::Null(_) => Ok(machine::available_memory()),
        }
    }

    /// What the plan must make room for, with `available` bytes in all and `weight_bytes` of them taken.
    pub(crate) fn limits(&self, available: u64, weight_bytes: u64, max_model_len: u32) -> MemoryLimits {
        let on_gpu = matches!(self.compute, Compute::Gpu(_));
        let budget = match self.engine.kv_cache_memory {
            Some(size) => MemoryBudget::KvCache(size.0),
            None if on_gpu => MemoryBudget::Total(available),
            None => {
                let left = available.saturating_sub(weight_bytes);
                MemoryBudget::KvCache((left / KV_CACHE_SHARE).min(KV_CACHE_MOST))
            }
        };
        MemoryLimits {
            budget,
            max_model_len,
            max_num_seqs: self.steps.max_num_seqs,
            max_num_batched_tokens: self.steps.max_num_batched_tokens,
            block_size: self.engine.block_size,
            steps_in_flight: if on_gpu { 2 } else { 1 },
            kv_dtype: self.kv_dtype,
            activation_bytes: if on_gpu { 2 } else { 4 },
            captured_tokens: if on_gpu { self.steps.max_num_seqs } else { 0 },
            overhead: if on_gpu { GPU_OVERHEAD } else { 0 },
        }
    }

    /// The plan of the memory, made before any weight is read.
    ///
    /// # Errors
    /// The model and what it is to serve do not fit; the message says what to change.
    pub(crate) fn plan(&self, info: &ModelInfo, weight_bytes: u64) -> Result<MemoryPlan> {
        let context = info.max_position_embeddings as u32;
        if let Some(len) = self.engine.max_model_len {
            ensure!(len <= context, "--max-model-len is {len}, but the model was made for {context} tokens at most");
        }
        let available = self.available()?;
        ensure!(
            weight_bytes < available,
            "the weights alone take {} and {} may be used; free memory, or choose a smaller model or one that is \
             quantized more",
            ByteSize(weight_bytes),
            ByteSize(available)
        );
        let wanted = self.engine.max_model_len.unwrap_or(context);
        let plan = match MemoryPlan::new(info, weight_bytes, &self.limits(available, weight_bytes, wanted)) {
            // Nobody asked for the whole context: serve what fits.
            Err(MemoryError::KvCacheTooSmall { fitting_len, .. })
                if self.engine.max_model_len.is_none() && fitting_len >= SHORTEST_CONTEXT =>
            {
                MemoryPlan::new(info, weight_bytes, &self.limits(available, weight_bytes, fitting_len))
            }
            other => other,
        }?;
        let total = plan.total();
        ensure!(
            total <= available,
            "this would take {} and {} may be used; choose a smaller model, or lower --kv-cache-memory, \
             --max-num-seqs or --max-num-batched-tokens\n{plan}",
            ByteSize(total),
            ByteSize(available)
        );
        Ok(plan)
    }

    /// Loads the weights and makes ready to compute.
    ///
    /// # Errors
    /// A checkpoint that does not fit its config, or a device that has not the memory.
    pub(crate) fn executor(
        &self,
        source: &Source,
        info: &ModelInfo,
        plan: &MemoryPlan,
        times: &mut StartTimes,
    ) -> Result<Box<dyn Executor>> {
        let (placement, device) = match &self.compute {
            Compute::Cpu => (Placement::Cpu(cpu_activations(self.engine.activations)?), TensorDevice::Cpu),
            Compute::Gpu(device) => (Placement::Gpu(device.clone()), device.clone()),
            Compute::Null(pace) => return Ok(pace.executor(info.vocab_size as u32)),
        };
        let bar = pull::progress_bar(plan.weights, "loading");
        let fp8_activations = match self.compute {
            Compute::Gpu(_) => fp8_activations(self.engine.activations)?,
            _ => None,
        };
        let loading = Loading { placement, quantize: self.engine.quantize.map(quantize), fp8_activations };
        let model = source.load(loading, |loaded| bar.set_position(loaded))?;
        if let Compute::Gpu(device) = &self.compute {
            gpu::give_back_free_memory(device)?; // of matrices that were joined
        }
        let loaded = bar.position();
        bar.finish_and_clear();
        times.end_weights(loaded);
        let blocks = plan.blocks_per_group();
        let cache = KvCache::new(info, &blocks, self.engine.block_size as usize, self.kv_dtype, &device)
            .context("the KV cache could not be allocated; lower --kv-cache-memory or --gpu-memory-utilization")?;
        times.end_part("KV cache");
        let config = RunnerConfig {
            max_num_seqs: self.steps.max_num_seqs,
            max_num_batched_tokens: self.steps.max_num_batched_tokens,
            max_model_len: plan.max_model_len,
            vocab_size: info.vocab_size as u32,
            cache: plan.cache_config(),
        };
        let bar = pull::step_bar("capturing decode steps");
        let told = |done, all| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        };
        let executor = plimsoll_runner::executor(model, cache, info, config, &device, told).context(
            "the device could not be made ready; lower --gpu-memory-utilization, --max-num-seqs or give --device cpu",
        )?;
        bar.finish_and_clear();
        times.end_part("warm-up");
        Ok(executor)
    }
}

fn quantize(kind: QuantizeKind) -> Quantize {
    match kind {
        QuantizeKind::Int8 => Quantize::Int8,
        QuantizeKind::Int4 => Quantize::Int4,
        QuantizeKind::Fp8 => Quantize::Fp8,
        QuantizeKind::Mxfp4 => Quantize::Mxfp4,
    }
}

fn cpu_activations(kind: Option<ActivationsKind>) -> Result<Activations> {
    match kind {
        None | Some(ActivationsKind::Int8) => Ok(Activations::Int8),
        Some(ActivationsKind::F32) => Ok(Activations::F32),
        Some(ActivationsKind::Bf16 | ActivationsKind::Fp8) => bail!("--activations on a CPU is int8 or f32"),
    }
}

/// See [`Loading`].
fn fp8_activations(kind: Option<ActivationsKind>) -> Result<Option<bool>> {
    match kind {
        None => Ok(None),
        Some(ActivationsKind::Bf16) => Ok(Some(false)),
        Some(ActivationsKind::Fp8) => Ok(Some(true)),
        Some(ActivationsKind::Int8 | ActivationsKind::F32) => bail!("--activations on a GPU is bf16 or fp8"),
    }
}
