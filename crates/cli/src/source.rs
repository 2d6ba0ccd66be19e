//! What a model is made of: a checkpoint, with its tokenizer and its makers' advice; or a config alone, with dummy
//! weights and a tokenizer of bytes.

use std::path::Path;

use anyhow::{Context, Result};
use plimsoll_nn::{Checkpoint, Footprint, Loading, Model, ModelInfo, Quantize};
use plimsoll_server::SamplingDefaults;
use plimsoll_text::Tokenizer;
use serde_json::Value;

use crate::{byte_vocab, vocab};

/// Of all dummy weights: the same config is the same model.
const DUMMY_SEED: u64 = 0;

/// A model's files, opened; no weight is read or made yet.
pub(crate) enum Source {
    Checkpoint(Checkpoint),
    /// A config.json, in place of a checkpoint.
    Dummy(Value),
}

impl Source {
    /// # Errors
    /// `path` is no checkpoint.
    pub(crate) fn checkpoint(path: &Path) -> Result<Self> {
        Ok(Self::Checkpoint(Checkpoint::open(path)?))
    }

    /// # Errors
    /// `path` is no JSON file, or describes no model that could be made.
    pub(crate) fn dummy(path: &Path) -> Result<Self> {
        let whole = std::fs::read(path).with_context(|| format!("cannot read --config {}", path.display()))?;
        let config = serde_json::from_slice(&whole);
        let source = Self::Dummy(config.with_context(|| format!("--config {} is not JSON", path.display()))?);
        source.info().with_context(|| format!("--config {} describes no model that can be made", path.display()))?;
        Ok(source)
    }

    /// The config.json, or what stands for it.
    pub(crate) fn config(&self) -> &Value {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Dummy(config) => config,
        }
    }

    /// # Errors
    /// An architecture or a config that is not implemented.
    pub(crate) fn info(&self) -> Result<ModelInfo> {
        let config = match self {
            Self::Checkpoint(checkpoint) => checkpoint.config(),
            Self::Dummy(config) => config,
        };
        Ok((plimsoll_models::find(config)?.info)(config)?)
    }

    /// # Errors
    /// The tokenizer is missing, malformed or of an unknown kind.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        match self {
            Self::Checkpoint(checkpoint) => vocab::tokenizer(checkpoint),
            Self::Dummy(_) => byte_vocab::tokenizer(self.info()?.vocab_size),
        }
    }

    /// Bytes of the weights where they are computed with: `quantize` is what full matrices are brought to.
    ///
    /// # Errors
    /// A config that is not implemented.
    pub(crate) fn weight_bytes(&self, quantize: Option<Quantize>, footprint: Footprint) -> Result<u64> {
        Ok(match self {
            Self::Checkpoint(checkpoint) => plimsoll_models::memory(checkpoint, quantize, footprint)?,
            Self::Dummy(config) => plimsoll_models::dummy_memory(config, quantize, footprint)?,
        })
    }

    /// Numbers that the model is made of.
    ///
    /// # Errors
    /// A config that is not implemented.
    pub(crate) fn parameters(&self) -> Result<u64> {
        let mut config = self.config().clone();
        config["dtype"] = "bfloat16".into();
        config["quantization_config"] = Value::Null;
        config["compression_config"] = Value::Null;
        Ok(plimsoll_models::dummy_bytes(&config)? / 2)
    }

    /// Reads or makes the weights; `progress` is told the bytes so far. Files are left to the kernel's own reading ahead:
    /// asking for them in large pieces was no faster where it was measured.
    ///
    /// # Errors
    /// A checkpoint that does not fit its config.
    pub(crate) fn load(&self, loading: Loading, progress: impl Fn(u64)) -> Result<Box<dyn Model>> {
        Ok(match self {
            Self::Checkpoint(checkpoint) => plimsoll_models::load(checkpoint, loading, |loaded, _| progress(loaded)),
            Self::Dummy(config) => plimsoll_models::load_dummy(config, DUMMY_SEED, loading, progress),
        }?)
    }

    /// What the model's makers recommend: `generation_config.json`, in a folder that has one.
    ///
    /// # Errors
    /// That file cannot be read.
    pub(crate) fn sampling_defaults(&self) -> Result<SamplingDefaults> {
        match self {
            Self::Checkpoint(checkpoint) => recommended(checkpoint.path()),
            Self::Dummy(_) => Ok(SamplingDefaults::default()),
        }
    }
}

fn recommended(path: &Path) -> Result<SamplingDefaults> {
    let file = path.join("generation_config.json");
    let mut defaults = SamplingDefaults::default();
    if !path.is_dir() || !file.exists() {
        return Ok(defaults);
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let json: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", file.display()))?;
    let number = |key: &str, default: f32| json[key].as_f64().map_or(default, |value| value as f32);
    defaults.temperature = number("temperature", defaults.temperature);
    defaults.top_p = number("top_p", defaults.top_p);
    defaults.min_p = number("min_p", defaults.min_p);
    defaults.repetition_penalty = number("repetition_penalty", defaults.repetition_penalty);
    defaults.top_k = json["top_k"].as_u64().map_or(defaults.top_k, |k| k as u32);
    Ok(defaults)
}
