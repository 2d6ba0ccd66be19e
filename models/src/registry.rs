//! Which architectures there are, by the name that config.json's `architectures` gives, and how a model of one is built.

use plimsoll_nn::{Checkpoint, CheckpointError, Footprint, Loading, Model, ModelInfo, Quantize, Weights};
use serde_json::Value;

use crate::{gemma3, gpt_oss, llama, llama4, qwen3, qwen3_moe};

/// One architecture, as functions of a config.
pub struct Architecture {
    /// As config.json's `architectures` names it.
    pub name: &'static str,
    /// What is known before the weights are read. Refuses configs that would not be computed faithfully.
    pub info: fn(&Value) -> Result<ModelInfo, CheckpointError>,
    /// Builds the model. Weights it did not ask for are the caller's to refuse ([`Weights::finish`]).
    pub load: Load,
}

/// Builds a model from its config and its weights.
pub type Load = fn(&Value, &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError>;

/// All architectures.
pub fn registry() -> &'static [Architecture] {
    &[
        Architecture { name: "LlamaForCausalLM", info: llama::info, load: llama::load },
        Architecture { name: "MistralForCausalLM", info: llama::info, load: llama::load },
        Architecture { name: "Llama4ForCausalLM", info: llama4::info, load: llama4::load },
        Architecture { name: "Llama4ForConditionalGeneration", info: llama4::info, load: llama4::load },
        Architecture { name: "Gemma3ForCausalLM", info: gemma3::info, load: gemma3::load },
        Architecture { name: "Gemma3ForConditionalGeneration", info: gemma3::info, load: gemma3::load },
        Architecture { name: "Qwen3ForCausalLM", info: qwen3::info, load: qwen3::load },
        Architecture { name: "Qwen3MoeForCausalLM", info: qwen3_moe::info, load: qwen3_moe::load },
        Architecture { name: "GptOssForCausalLM", info: gpt_oss::info, load: gpt_oss::load },
    ]
}

/// The architecture that a config asks for.
///
/// # Errors
/// The config names none, or none that is implemented.
pub fn find(config: &Value) -> Result<&'static Architecture, CheckpointError> {
    let named: Vec<&str> = match config.get("architectures") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => return Err(CheckpointError::config("architectures", "must be an array of names")),
    };
    registry().iter().find(|architecture| named.contains(&architecture.name)).ok_or_else(|| {
        let known: Vec<&str> = registry().iter().map(|architecture| architecture.name).collect();
        CheckpointError::Architecture { found: format!("{named:?}"), known: known.join(", ") }
    })
}

/// Loads a whole checkpoint; `progress` is called with the bytes loaded so far and in all.
///
/// # Errors
/// An architecture or config that is not implemented; missing, misshapen or left-over tensors.
pub fn load(
    checkpoint: &Checkpoint,
    loading: impl Into<Loading>,
    progress: impl Fn(u64, u64),
) -> Result<Box<dyn Model>, CheckpointError> {
    let architecture = find(checkpoint.config())?;
    let weights = Weights::new(checkpoint, loading, progress)?;
    let model = (architecture.load)(checkpoint.config(), &weights)?;
    weights.finish()?;
    Ok(model)
}

/// Everything that [`load`] would refuse, as far as it shows without reading the matrices.
pub fn survey(checkpoint: &Checkpoint) -> Vec<CheckpointError> {
    let config = checkpoint.config();
    let begun = find(config).and_then(|architecture| Ok((architecture, Weights::survey(checkpoint)?)));
    let (architecture, weights) = match begun {
        Ok(begun) => begun,
        Err(problem) => return vec![problem],
    };
    let built = (architecture.load)(config, &weights);
    let mut problems = weights.problems();
    problems.extend(built.and_then(|_| weights.finish()).err());
    problems
}

/// Builds a model of made-up weights ([`Weights::dummy`]) at the shapes that `config` asks for, without a checkpoint;
/// `progress` is called with the bytes made so far.
///
/// # Errors
/// An architecture or config that is not implemented.
pub fn load_dummy(
    config: &Value,
    seed: u64,
    loading: impl Into<Loading>,
    progress: impl Fn(u64),
) -> Result<Box<dyn Model>, CheckpointError> {
    (find(config)?.load)(config, &Weights::dummy(config, seed, loading, progress)?)
}

/// Bytes of the weights that [`load_dummy`] makes, found by a dry run of it.
///
/// # Errors
/// As [`load_dummy`].
pub fn dummy_bytes(config: &Value) -> Result<u64, CheckpointError> {
    quantized_bytes(config, None)
}

/// As [`dummy_bytes`], of weights that are quantized while they are made or loaded ([`Loading::quantize`]).
///
/// # Errors
/// As [`load_dummy`].
pub fn quantized_bytes(config: &Value, quantize: Option<Quantize>) -> Result<u64, CheckpointError> {
    dummy_memory(config, quantize, Footprint::Stored)
}

/// Bytes of memory that the weights of [`load_dummy`] take.
///
/// # Errors
/// As [`load_dummy`].
pub fn dummy_memory(config: &Value, quantize: Option<Quantize>, footprint: Footprint) -> Result<u64, CheckpointError> {
    let weights = Weights::sizes(config, quantize, footprint)?;
    (find(config)?.load)(config, &weights)?;
    Ok(weights.loaded_bytes())
}

/// Bytes of memory that a checkpoint's weights take once [`load`] has brought them to what is computed with, found without
/// reading them, their scales or norms. Of what [`load`] would refuse, this does not tell.
///
/// # Errors
/// An architecture or config that is not implemented.
pub fn memory(
    checkpoint: &Checkpoint,
    quantize: Option<Quantize>,
    footprint: Footprint,
) -> Result<u64, CheckpointError> {
    let weights = Weights::sizes_of(checkpoint, quantize, footprint)?;
    (find(checkpoint.config())?.load)(checkpoint.config(), &weights)?;
    Ok(weights.loaded_bytes())
}
