//! From a model's name to an executor: finds what it is made of, plans the memory, loads the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device as TensorDevice;
use plimsoll_core::{CacheConfig, Executor};
use plimsoll_nn::{KvCache, ModelInfo};
use plimsoll_ops::gpu;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::{Activations, Placement};
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan, RunnerConfig};
use plimsoll_server::SamplingDefaults;
use plimsoll_sim::{NullConfig, NullExecutor};
use plimsoll_text::Tokenizer;

use crate::bytes::ByteSize;
use crate::catalogue::{Catalogue, Entry};
use crate::config::{Config, Engine, Model, Steps};
use crate::device::{self, Compute};
use crate::options::ActivationsKind;
use crate::source::Source;
use crate::{machine, pull};

/// The KV cache takes this share of the free memory, and no more than this, unless told.
const KV_CACHE_SHARE: u64 = 4;
const KV_CACHE_MOST: u64 = 2 << 30;

/// Of a GPU's memory, for libraries and captured steps. An estimate.
const GPU_OVERHEAD: u64 = 1 << 30;

/// A context this short serves nobody: rather refuse to start.
const SHORTEST_CONTEXT: u32 = 128;

/// A model that is ready to run.
pub(crate) struct Loaded {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) cache: CacheConfig,
    pub(crate) max_model_len: u32,
    pub(crate) vocab_size: u32,
    pub(crate) defaults: SamplingDefaults,
}

/// Which model is meant, what clients call it, and where it will run.
pub(crate) struct Found {
    pub(crate) name: String,
    place: Where,
    compute: Compute,
    kv_dtype: KvDtype,
    pub(crate) steps: Steps,
}

enum Where {
    Here(PathBuf),
    Catalogue(Entry),
    Dummy(Source),
}

/// Finds out what is to be served, and on what, without fetching anything yet.
///
/// # Errors
/// The model is neither a path that exists nor a name of the catalogue, nor a config of one that can be made; or the
/// device is not there, or cannot do what is asked of it.
pub(crate) fn find(config: &Config) -> Result<Found> {
    let (name, place) = match &config.model {
        Model::Default => named(Catalogue::load()?.default_model()),
        Model::Named(model) if Path::new(model).exists() => {
            let path = PathBuf::from(model);
            (name_of(&path), Where::Here(path))
        }
        Model::Named(model) => named(Catalogue::load()?.find(model)?),
        Model::Dummy(path) => (format!("{}-dummy", name_of(path)), Where::Dummy(Source::dummy(path)?)),
    };
    let compute = device::choose(config.shared.device)?;
    let kv_dtype = device::kv_dtype(config.engine.kv_cache_dtype, &compute)?;
    let on_gpu = matches!(compute, Compute::Gpu(_));
    let block = config.engine.block_size;
    anyhow::ensure!(
        !on_gpu || block.is_multiple_of(16),
        "--block-size is {block}; on a GPU give 16, 32, 64, 128 or 256"
    );
    let steps = config.engine.steps(on_gpu)?;
    Ok(Found { name: config.served_model_name.clone().unwrap_or(name), place, compute, kv_dtype, steps })
}

fn named(entry: &Entry) -> (String, Where) {
    (entry.name.clone(), Where::Catalogue(entry.clone()))
}

/// A file's name without its ending; a folder's, and that of the folder of a file called config.json.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = match whole.file_name() {
        Some(name) if name == "config.json" => whole.parent().and_then(Path::file_name),
        name if whole.is_dir() => name,
        _ => whole.file_stem(),
    };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

impl Found {
    /// What tells these weights from others, without reading them: their digest in the catalogue, or the names, sizes
    /// and times of the files.
    ///
    /// # Errors
    /// The files cannot be looked at.
    pub(crate) fn weights_identity(&self) -> Result<String> {
        match &self.place {
            Where::Catalogue(entry) => Ok(entry.sha256.clone()),
            Where::Here(path) => files_identity(path).with_context(|| format!("cannot look at {}", path.display())),
            Where::Dummy(source) => Ok(format!("dummy, {} bytes", source.weight_bytes()?)),
        }
    }

    /// The GPU's name, or the CPU's.
    ///
    /// # Errors
    /// The GPU does not tell.
    pub(crate) fn device_name(&self) -> Result<String> {
        match &self.compute {
            Compute::Gpu(device) => Ok(gpu::info(device)?.name),
            Compute::Cpu => Ok(machine::cpu_name()),
            Compute::Null => Ok("null".into()),
        }
    }

    /// Brings the checkpoint here if need be, and loads it.
    ///
    /// # Errors
    /// It cannot be fetched, is malformed or of an unknown architecture, or the memory does not suffice.
    pub(crate) fn load(self, config: &Config) -> Result<Loaded> {
        let source = match self.place {
            Where::Here(path) => Source::checkpoint(&path)?,
            Where::Catalogue(entry) => Source::checkpoint(&pull::ensure(&entry)?)?,
            Where::Dummy(source) => source,
        };
        let tokenizer = with_template(source.tokenizer()?, config.chat_template.as_deref())?;
        let info = source.info()?;
        let means = Means { compute: self.compute, kv_dtype: self.kv_dtype, steps: self.steps, engine: &config.engine };
        let plan = means.plan(&info, means.weight_bytes(&source)?)?;
        println!("{plan}");
        let executor = means.executor(&source, &info, &plan)?;
        Ok(Loaded {
            tokenizer,
            executor,
            cache: plan.cache_config(),
            max_model_len: plan.max_model_len,
            vocab_size: info.vocab_size as u32,
            defaults: source.sampling_defaults()?,
        })
    }
}

/// Of one file, or of those in a folder.
fn files_identity(path: &Path) -> std::io::Result<String> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        files.sort();
    }
    let identity = |file: &PathBuf| {
        let metadata = file.metadata()?;
        let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
        Ok(format!("{} {} {changed}", file.file_name().unwrap_or_default().display(), metadata.len()))
    };
    Ok(files.iter().map(identity).collect::<std::io::Result<Vec<_>>>()?.join("; "))
}

fn with_template(tokenizer: Tokenizer, file: Option<&Path>) -> Result<Tokenizer> {
    let Some(file) = file else { return Ok(tokenizer) };
    let source =
        std::fs::read_to_string(file).with_context(|| format!("cannot read --chat-template {}", file.display()))?;
    tokenizer.with_chat_template(&source).with_context(|| format!("--chat-template {} cannot be used", file.display()))
}

/// What a model is loaded with.
struct Means<'a> {
    compute: Compute,
    kv_dtype: KvDtype,
    steps: Steps,
    engine: &'a Engine,
}

impl Means<'_> {
    /// Bytes of the weights where they are computed with: on a GPU all are bf16.
    fn weight_bytes(&self, source: &Source) -> Result<u64> {
        match self.compute {
            Compute::Null => Ok(0),
            Compute::Cpu => source.weight_bytes(),
            Compute::Gpu(_) => source.bf16_bytes(),
        }
    }

    /// Bytes that may be allocated.
    fn available(&self) -> Result<u64> {
        match &self.compute {
            Compute::Gpu(device) => {
                Ok((gpu::info(device)?.free_memory as f64 * self.engine.gpu_memory_utilization) as u64)
            }
            Compute::Cpu | Compute::Null => Ok(machine::available_memory()),
        }
    }

    fn limits(&self, available: u64, max_model_len: u32) -> MemoryLimits {
        let on_gpu = matches!(self.compute, Compute::Gpu(_));
        let budget = match self.engine.kv_cache_memory {
            Some(size) => MemoryBudget::KvCache(size.0),
            None if on_gpu => MemoryBudget::Total(available),
            None => MemoryBudget::KvCache((available / KV_CACHE_SHARE).min(KV_CACHE_MOST)),
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

    fn plan(&self, info: &ModelInfo, weight_bytes: u64) -> Result<MemoryPlan> {
        let context = info.max_position_embeddings as u32;
        if let Some(len) = self.engine.max_model_len {
            anyhow::ensure!(
                len <= context,
                "--max-model-len is {len}, but the model was made for {context} tokens at most"
            );
        }
        let available = self.available()?;
        let wanted = self.engine.max_model_len.unwrap_or(context);
        let plan = match MemoryPlan::new(info, weight_bytes, &self.limits(available, wanted)) {
            // Nobody asked for the whole context: serve what fits.
            Err(MemoryError::KvCacheTooSmall { fitting_len, .. })
                if self.engine.max_model_len.is_none() && fitting_len >= SHORTEST_CONTEXT =>
            {
                println!(
                    "the KV cache holds {fitting_len} tokens, so requests may be that long (the model: {context})"
                );
                MemoryPlan::new(info, weight_bytes, &self.limits(available, fitting_len))
            }
            other => other,
        }?;
        let total = plan.total();
        anyhow::ensure!(
            total <= available,
            "this would take {} and {} may be used; choose a smaller model, or lower --kv-cache-memory, \
             --max-num-seqs or --max-num-batched-tokens\n{plan}",
            ByteSize(total),
            ByteSize(available)
        );
        Ok(plan)
    }

    /// Loads the weights and makes ready to compute.
    fn executor(&self, source: &Source, info: &ModelInfo, plan: &MemoryPlan) -> Result<Box<dyn Executor>> {
        let (placement, device) = match &self.compute {
            Compute::Cpu => (Placement::Cpu(activations(self.engine.activations)), TensorDevice::Cpu),
            Compute::Gpu(device) => (Placement::Gpu(device.clone()), device.clone()),
            Compute::Null => {
                let vocab_size = info.vocab_size as u32;
                return Ok(Box::new(NullExecutor::new(NullConfig { vocab_size, ..NullConfig::default() })));
            }
        };
        let bar = pull::progress_bar(plan.weights, "loading");
        let model = source.load(placement, |loaded| bar.set_position(loaded))?;
        bar.finish_and_clear();
        let blocks = plan.blocks_per_group();
        let cache = KvCache::new(info, &blocks, self.engine.block_size as usize, self.kv_dtype, &device)
            .context("the KV cache could not be allocated; lower --kv-cache-memory or --gpu-memory-utilization")?;
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
        Ok(executor)
    }
}

fn activations(kind: ActivationsKind) -> Activations {
    match kind {
        ActivationsKind::Int8 => Activations::Int8,
        ActivationsKind::F32 => Activations::F32,
    }
}
