//! From a model's name to an executor: finds the checkpoint, plans the memory, loads the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device as TensorDevice;
use plimsoll_core::{CacheConfig, Executor};
use plimsoll_nn::{Checkpoint, KvCache, ModelInfo};
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use plimsoll_runner::{MemoryBudget, MemoryError, MemoryLimits, MemoryPlan, Runner, RunnerConfig};
use plimsoll_server::SamplingDefaults;
use plimsoll_sim::{NullConfig, NullExecutor};
use plimsoll_text::Tokenizer;

use crate::bytes::ByteSize;
use crate::catalogue::{Catalogue, Entry};
use crate::config::{Config, Engine};
use crate::options::{ActivationsKind, CacheDtype, Device};
use crate::{machine, pull, vocab};

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

/// Which checkpoint is meant, and what clients call it.
pub(crate) struct Found {
    pub(crate) name: String,
    source: Where,
}

enum Where {
    Here(PathBuf),
    Catalogue(Entry),
}

/// Finds out what `model` means without fetching anything yet.
///
/// # Errors
/// It is neither a path that exists nor a name of the catalogue.
pub(crate) fn find(config: &Config) -> Result<Found> {
    let catalogue = Catalogue::load()?;
    let found = match &config.model {
        None => named(catalogue.default_model()),
        Some(model) if Path::new(model).exists() => {
            let path = PathBuf::from(model);
            Found { name: name_of(&path), source: Where::Here(path) }
        }
        Some(model) => named(catalogue.find(model)?),
    };
    Ok(Found { name: config.served_model_name.clone().unwrap_or(found.name), source: found.source })
}

fn named(entry: &Entry) -> Found {
    Found { name: entry.name.clone(), source: Where::Catalogue(entry.clone()) }
}

fn name_of(path: &Path) -> String {
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = if whole.is_dir() { whole.file_name() } else { whole.file_stem() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

impl Found {
    /// Brings the checkpoint here if need be, and loads it.
    ///
    /// # Errors
    /// It cannot be fetched, is malformed or of an unknown architecture, or the memory does not suffice.
    pub(crate) fn load(&self, config: &Config) -> Result<Loaded> {
        let path = match &self.source {
            Where::Here(path) => path.clone(),
            Where::Catalogue(entry) => pull::ensure(entry)?,
        };
        let checkpoint = Checkpoint::open(&path)?;
        let tokenizer = with_template(vocab::tokenizer(&checkpoint)?, config.chat_template.as_deref())?;
        let info = (plimsoll_models::find(checkpoint.config())?.info)(checkpoint.config())?;
        let null = config.shared.device == Device::Null;
        let weight_bytes = if null { 0 } else { checkpoint.weight_bytes() };
        let plan = plan(&info, weight_bytes, &config.engine)?;
        println!("{plan}");
        let executor: Box<dyn Executor> = if null {
            Box::new(NullExecutor::new(NullConfig { vocab_size: info.vocab_size as u32, ..NullConfig::default() }))
        } else {
            Box::new(runner(&checkpoint, &info, &plan, &config.engine)?)
        };
        Ok(Loaded {
            tokenizer,
            executor,
            cache: plan.cache_config(),
            max_model_len: plan.max_model_len,
            vocab_size: info.vocab_size as u32,
            defaults: sampling_defaults(&path)?,
        })
    }
}

fn with_template(tokenizer: Tokenizer, file: Option<&Path>) -> Result<Tokenizer> {
    let Some(file) = file else { return Ok(tokenizer) };
    let source =
        std::fs::read_to_string(file).with_context(|| format!("cannot read --chat-template {}", file.display()))?;
    tokenizer.with_chat_template(&source).with_context(|| format!("--chat-template {} cannot be used", file.display()))
}

/// What the model's makers recommend: `generation_config.json`, in a folder that has one.
fn sampling_defaults(path: &Path) -> Result<SamplingDefaults> {
    let file = path.join("generation_config.json");
    let mut defaults = SamplingDefaults::default();
    if !path.is_dir() || !file.exists() {
        return Ok(defaults);
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    let number = |key: &str, default: f32| json[key].as_f64().map_or(default, |value| value as f32);
    defaults.temperature = number("temperature", defaults.temperature);
    defaults.top_p = number("top_p", defaults.top_p);
    defaults.min_p = number("min_p", defaults.min_p);
    defaults.repetition_penalty = number("repetition_penalty", defaults.repetition_penalty);
    defaults.top_k = json["top_k"].as_u64().map_or(defaults.top_k, |k| k as u32);
    Ok(defaults)
}

fn plan(info: &ModelInfo, weight_bytes: u64, engine: &Engine) -> Result<MemoryPlan> {
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
        kv_dtype: kv_dtype(engine.kv_cache_dtype),
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

fn runner(checkpoint: &Checkpoint, info: &ModelInfo, plan: &MemoryPlan, engine: &Engine) -> Result<Runner> {
    let bar = pull::progress_bar(checkpoint.weight_bytes(), "loading");
    let model =
        plimsoll_models::load(checkpoint, activations(engine.activations), |loaded, _| bar.set_position(loaded))?;
    bar.finish_and_clear();
    let dtype = kv_dtype(engine.kv_cache_dtype);
    let blocks = plan.blocks_per_group();
    let cache = KvCache::new(info, &blocks, engine.block_size as usize, dtype, &TensorDevice::Cpu)
        .context("the KV cache could not be allocated; lower --kv-cache-memory")?;
    let config = RunnerConfig {
        max_num_seqs: engine.max_num_seqs,
        max_model_len: plan.max_model_len,
        vocab_size: info.vocab_size as u32,
        cache: plan.cache_config(),
    };
    Ok(Runner::new(model, cache, config))
}

fn kv_dtype(dtype: CacheDtype) -> KvDtype {
    match dtype {
        CacheDtype::F32 => KvDtype::F32,
        CacheDtype::F16 => KvDtype::F16,
        CacheDtype::Bf16 => KvDtype::BF16,
    }
}

fn activations(kind: ActivationsKind) -> Activations {
    match kind {
        ActivationsKind::Int8 => Activations::Int8,
        ActivationsKind::F32 => Activations::F32,
    }
}
