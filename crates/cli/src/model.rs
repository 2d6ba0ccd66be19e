//! From a model's name to an executor: finds what it is made of, plans the memory, loads the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device as TensorDevice;
use plimsoll_core::{CacheConfig, Executor};
use plimsoll_nn::{KvCache, ModelInfo};
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan, Runner, RunnerConfig};
use plimsoll_server::SamplingDefaults;
use plimsoll_sim::{NullConfig, NullExecutor};
use plimsoll_text::Tokenizer;

use crate::bytes::ByteSize;
use crate::catalogue::{Catalogue, Entry};
use crate::config::{Config, Engine, Model};
use crate::device::{self, Device};
use crate::options::ActivationsKind;
use crate::source::Source;
use crate::{machine, pull};

/// The KV cache takes this share of the free memory, and no more than this, unless told.
const KV_CACHE_SHARE: u64 = 4;
const KV_CACHE_MOST: u64 = 2 << 30;

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
    /// Never [`Device::Auto`].
    device: Device,
    kv_dtype: KvDtype,
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
    let device = device::choose(config.shared.device)?;
    let kv_dtype = device::kv_dtype(config.engine.kv_cache_dtype, device)?;
    let (name, place) = match &config.model {
        Model::Default => named(Catalogue::load()?.default_model()),
        Model::Named(model) if Path::new(model).exists() => {
            let path = PathBuf::from(model);
            (name_of(&path), Where::Here(path))
        }
        Model::Named(model) => named(Catalogue::load()?.find(model)?),
        Model::Dummy(path) => (format!("{}-dummy", name_of(path)), Where::Dummy(Source::dummy(path)?)),
    };
    Ok(Found { name: config.served_model_name.clone().unwrap_or(name), place, device, kv_dtype })
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
        let null = self.device == Device::Null;
        let weight_bytes = if null { 0 } else { source.weight_bytes()? };
        let plan = plan(&info, weight_bytes, &config.engine, self.kv_dtype)?;
        println!("{plan}");
        let executor: Box<dyn Executor> = if null {
            Box::new(NullExecutor::new(NullConfig { vocab_size: info.vocab_size as u32, ..NullConfig::default() }))
        } else {
            Box::new(runner(&source, &info, &plan, &config.engine, self.kv_dtype)?)
        };
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

fn with_template(tokenizer: Tokenizer, file: Option<&Path>) -> Result<Tokenizer> {
    let Some(file) = file else { return Ok(tokenizer) };
    let source =
        std::fs::read_to_string(file).with_context(|| format!("cannot read --chat-template {}", file.display()))?;
    tokenizer.with_chat_template(&source).with_context(|| format!("--chat-template {} cannot be used", file.display()))
}

fn plan(info: &ModelInfo, weight_bytes: u64, engine: &Engine, kv_dtype: KvDtype) -> Result<MemoryPlan> {
    let context = info.max_position_embeddings as u32;
    if let Some(len) = engine.max_model_len {
        anyhow::ensure!(
            len <= context,
            "--max-model-len is {len}, but the model was made for {context} tokens at most"
        );
    }
    let available = machine::available_memory();
    let budget = engine.kv_cache_memory.map_or((available / KV_CACHE_SHARE).min(KV_CACHE_MOST), |size| size.0);
    let limits = |max_model_len| MemoryLimits {
        budget: MemoryBudget::KvCache(budget),
        max_model_len,
        max_num_seqs: engine.max_num_seqs,
        max_num_batched_tokens: engine.max_num_batched_tokens,
        block_size: engine.block_size,
        steps_in_flight: 1,
        kv_dtype,
        activation_bytes: 4,
        overhead: 0,
    };
    let plan = match MemoryPlan::new(info, weight_bytes, &limits(engine.max_model_len.unwrap_or(context))) {
        // Nobody asked for the whole context: serve what fits.
        Err(MemoryError::KvCacheTooSmall { fitting_len, .. })
            if engine.max_model_len.is_none() && fitting_len >= SHORTEST_CONTEXT =>
        {
            println!("the KV cache holds {fitting_len} tokens, so requests may be that long (the model: {context})");
            MemoryPlan::new(info, weight_bytes, &limits(fitting_len))
        }
        other => other,
    }?;
    let total = plan.total();
    anyhow::ensure!(
        total <= available,
        "this would take {} and there are {} free; choose a smaller model, or lower --kv-cache-memory, \
         --max-num-seqs or --max-num-batched-tokens\n{plan}",
        ByteSize(total),
        ByteSize(available)
    );
    Ok(plan)
}

fn runner(source: &Source, info: &ModelInfo, plan: &MemoryPlan, engine: &Engine, kv_dtype: KvDtype) -> Result<Runner> {
    let bar = pull::progress_bar(plan.weights, "loading");
    let model = source.load(activations(engine.activations), |loaded| bar.set_position(loaded))?;
    bar.finish_and_clear();
    let blocks = plan.blocks_per_group();
    let cache = KvCache::new(info, &blocks, engine.block_size as usize, kv_dtype, &TensorDevice::Cpu)
        .context("the KV cache could not be allocated; lower --kv-cache-memory")?;
    let config = RunnerConfig {
        max_num_batched_tokens: engine.max_num_batched_tokens,
        max_num_seqs: engine.max_num_seqs,
        max_model_len: plan.max_model_len,
        vocab_size: info.vocab_size as u32,
        cache: plan.cache_config(),
    };
    Ok(Runner::new(model, cache, config))
}

fn activations(kind: ActivationsKind) -> Activations {
    match kind {
        ActivationsKind::Int8 => Activations::Int8,
        ActivationsKind::F32 => Activations::F32,
    }
}
