//! `plimsoll inspect`: what a checkpoint is, what it takes, and what of it would not load. It reads headers,
//! norms and the scales that stand in tensors of their own, and makes the server's own memory plan; it reads no matrix.

mod memory;
mod report;
mod tensors;

use anyhow::{Result, bail, ensure};
use clap::Args;
use plimsoll_nn::ModelInfo;
use serde_json::Value;

use self::memory::Memory;
use self::report::{Architecture, Report, Text};
use crate::bytes::ByteSize;
use crate::config::{Config, Model};
use crate::device;
use crate::means::Means;
use crate::model;
use crate::options::{CacheDtype, LoadFormat, QuantizeKind, ServeOptions, SharedOptions};
use crate::source::Source;
use crate::start_times::StartTimes;

/// What `inspect` takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct InspectOptions {
    /// A .gguf file, a folder of safetensors, or a catalogue name (which is fetched if it is not here). Without one, the
    /// config.json that `--config FILE.json` names, as `serve --load-format dummy` would make it
    #[arg(value_name = "MODEL")]
    model: Option<String>,

    /// Print everything as one JSON object, sizes in bytes
    #[arg(long)]
    json: bool,

    /// Longest prompt plus completion to make room for, in tokens [default: the model's context]
    #[arg(long, value_name = "TOKENS")]
    max_model_len: Option<u32>,

    /// Sequences to make room for [default: 64, on a GPU 1024]
    #[arg(long, value_name = "N")]
    max_num_seqs: Option<u32>,

    /// Tokens computed in one step [default: 512, on a GPU 8192]
    #[arg(long, value_name = "TOKENS")]
    max_num_batched_tokens: Option<u32>,

    /// Memory that `serve` would be given for the KV cache, for instance `2GiB` [default: as `serve`]
    #[arg(long, value_name = "SIZE")]
    kv_cache_memory: Option<ByteSize>,

    /// Element type of the KV cache [default: auto]
    #[arg(long, value_name = "TYPE")]
    kv_cache_dtype: Option<CacheDtype>,

    /// Format that matrices would be brought to while they are loaded [default: as stored]
    #[arg(long, value_name = "FORMAT")]
    quantize: Option<QuantizeKind>,
}

impl InspectOptions {
    /// As `serve` would be told.
    fn serve(&self, shared: &SharedOptions) -> ServeOptions {
        let has_config = shared.config.iter().any(|path| path.extension().is_some_and(|ending| ending == "json"));
        ServeOptions {
            model: self.model.clone(),
            load_format: (self.model.is_none() && has_config).then_some(LoadFormat::Dummy),
            max_model_len: self.max_model_len,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            kv_cache_memory: self.kv_cache_memory,
            kv_cache_dtype: self.kv_cache_dtype,
            quantize: self.quantize,
            ..ServeOptions::default()
        }
    }
}

/// Prints the report.
///
/// # Errors
/// There is nothing to look at; or, once all is printed, it would not load.
pub(crate) fn run(shared: SharedOptions, options: &InspectOptions) -> Result<()> {
    let serve = options.serve(&shared);
    let config = Config::resolve(shared, serve)?;
    ensure!(
        config.model != Model::Default,
        "there is nothing to inspect: give a .gguf file, a folder of safetensors or a catalogue name, or a model's \
         config.json with --config FILE.json"
    );
    let report = inspect(&config)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", Text(&report));
    }
    match &report.problems[..] {
        [] => Ok(()),
        _ if !options.json => bail!("it would not load"), // why was told at length
        [problem] => bail!("it would not load: {problem}"),
        [first, ..] => bail!("it would not load, for {} reasons; the first: {first}", report.problems.len()),
    }
}

/// An error and its causes, each said once.
fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match &told[..] {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

fn inspect(config: &Config) -> Result<Report> {
    let (name, place) = model::place(config)?;
    let mut report = Report { name, ..Report::default() };
    let source = match place.open(&mut StartTimes::begin()) {
        Ok(source) => source,
        Err(error) => {
            report.problems.push(told(&error));
            return Ok(report);
        }
    };
    report.add_source(&source);
    match source.info() {
        Ok(info) => add_model(&mut report, &source, &info, config)?,
        Err(error) => report.problems.push(told(&error)),
    }
    match source.tokenizer() {
        Ok(tokenizer) => report.add_tokenizer(&tokenizer),
        Err(error) => report.problems.push(told(&error)),
    }
    Ok(report)
}

/// What follows from a config that is understood.
fn add_model(report: &mut Report, source: &Source, info: &ModelInfo, config: &Config) -> Result<()> {
    report.architecture = Some(Architecture::of(info));
    if let Source::Checkpoint(checkpoint) = source {
        report.problems.extend(plimsoll_models::survey(checkpoint).iter().map(ToString::to_string));
    }
    match source.parameters() {
        Ok(parameters) => report.parameters = Some(parameters),
        Err(error) if report.problems.is_empty() => report.problems.push(told(&error)),
        Err(_) => {}
    }
    let (compute, _) = device::choose(config.shared.device)?;
    let means = Means::new(compute, &config.engine)?;
    match means.weight_bytes(source) {
        Ok(weights) => report.memory = Some(Memory::of(info, weights, &means)?),
        Err(error) if report.problems.is_empty() => report.problems.push(told(&error)),
        Err(_) => {}
    }
    Ok(())
}

/// The file's own name for its type of model, whether or not it is known here.
fn claimed_architecture(config: &Value) -> Option<String> {
    let named = config.get("architectures")?.as_array()?;
    Some(named.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
}
