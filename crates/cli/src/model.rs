//! From a model's name to an executor: finds what it is made of, plans the memory, loads the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plimsoll_core::{CacheConfig, Executor};
use plimsoll_ops::gpu;
use plimsoll_server::SamplingDefaults;
use plimsoll_text::Tokenizer;

use crate::catalogue::{Catalogue, Entry};
use crate::config::{Config, Model, Steps};
use crate::device::{self, Compute};
use crate::means::Means;
use crate::name::name_of;
use crate::source::Source;
use crate::start_times::StartTimes;
use crate::{machine, pull};

/// A model that is ready to run.
pub(crate) struct Loaded {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) executor: Box<dyn Executor>,
    pub(crate) cache: CacheConfig,
    pub(crate) max_model_len: u32,
    pub(crate) vocab_size: u32,
    pub(crate) defaults: SamplingDefaults,
    pub(crate) times: StartTimes,
}

/// Which model is meant, what clients call it, and where it will run.
pub(crate) struct Found {
    pub(crate) name: String,
    place: Place,
    means: Means,
    times: StartTimes,
}

/// Where a model is.
pub(crate) enum Place {
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
    let mut times = StartTimes::begin();
    let (name, place) = place(config)?;
    let (compute, line) = device::choose(config.shared.device)?;
    if let Some(line) = line {
        println!("{line}");
    }
    let means = Means::new(compute, &config.engine)?;
    times.end_part("device");
    Ok(Found { name: config.served_model_name.clone().unwrap_or(name), place, means, times })
}

/// Which model is meant, by its name, and where it is.
///
/// # Errors
/// As [`find`], of the model.
pub(crate) fn place(config: &Config) -> Result<(String, Place)> {
    Ok(match &config.model {
        Model::Default => named(Catalogue::load()?.default_model()),
        Model::Named(model) if Path::new(model).exists() => {
            let path = PathBuf::from(model);
            (name_of(&path), Place::Here(path))
        }
        Model::Named(model) => named(Catalogue::load()?.find(model)?),
        Model::Dummy(path) => (format!("{}-dummy", name_of(path)), Place::Dummy(Source::dummy(path)?)),
    })
}

fn named(entry: &Entry) -> (String, Place) {
    (entry.name.clone(), Place::Catalogue(entry.clone()))
}

impl Place {
    /// Brings the checkpoint here if need be, and opens it.
    ///
    /// # Errors
    /// It cannot be fetched, or is no checkpoint.
    pub(crate) fn open(self, times: &mut StartTimes) -> Result<Source> {
        match self {
            Self::Here(path) => Source::checkpoint(&path),
            Self::Catalogue(entry) => {
                let path = pull::ensure(&entry)?;
                times.end_part("fetch");
                Source::checkpoint(&path)
            }
            Self::Dummy(source) => Ok(source),
        }
    }
}

impl Found {
    /// How much a step computes at most.
    pub(crate) fn steps(&self) -> Steps {
        self.means.steps
    }

    /// What tells these weights from others, without reading them: their digest in the catalogue, or the names, sizes
    /// and times of the files.
    ///
    /// # Errors
    /// The files cannot be looked at.
    pub(crate) fn weights_identity(&self) -> Result<String> {
        match &self.place {
            Place::Catalogue(entry) => Ok(entry.sha256.clone()),
            Place::Here(path) => files_identity(path).with_context(|| format!("cannot look at {}", path.display())),
            Place::Dummy(source) => {
                Ok(format!("dummy, {} bytes", source.weight_bytes(None, plimsoll_nn::Footprint::Stored)?))
            }
        }
    }

    /// The GPU's name, or the CPU's.
    ///
    /// # Errors
    /// The GPU does not tell.
    pub(crate) fn device_name(&self) -> Result<String> {
        match &self.means.compute {
            Compute::Gpu(device) => Ok(gpu::info(device)?.name),
            Compute::Cpu => Ok(machine::cpu_name()),
            Compute::Null(pace) => Ok(format!("null:{pace}")),
        }
    }

    /// Brings the checkpoint here if need be, and loads it.
    ///
    /// # Errors
    /// It cannot be fetched, is malformed or of an unknown architecture, or the memory does not suffice.
    pub(crate) fn load(self, config: &Config) -> Result<Loaded> {
        let mut times = self.times;
        let source = self.place.open(&mut times)?;
        let tokenizer = with_template(source.tokenizer()?, config.chat_template.as_deref())?;
        let info = source.info()?;
        times.end_part("open");
        let means = self.means;
        let plan = means.plan(&info, means.weight_bytes(&source)?)?;
        let (served, context) = (plan.max_model_len, info.max_position_embeddings);
        if config.engine.max_model_len.is_none() && (served as usize) < context {
            println!("the KV cache holds {served} tokens, so requests may be that long (the model: {context})");
        }
        println!("{plan}");
        times.end_part("plan");
        let executor = means.executor(&source, &info, &plan, &mut times)?;
        Ok(Loaded {
            tokenizer,
            executor,
            cache: plan.cache_config(),
            max_model_len: plan.max_model_len,
            vocab_size: info.vocab_size as u32,
            defaults: source.sampling_defaults()?,
            times,
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
