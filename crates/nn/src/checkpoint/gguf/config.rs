//! The Hugging Face config.json that a GGUF file's metadata amounts to.
//!
//! Every key under the architecture's name must be understood: one that is not might change the result, so it is an
//! error, not a warning.

use std::cell::RefCell;
use std::collections::BTreeSet;

use plimsoll_ops::quant::dequantize_row;
use serde_json::{Map, Value, json};

use super::ROPE_FREQS;
use super::metadata::{GgufArray, GgufMetadata, GgufValue};
use super::tensors::TensorTable;
use crate::error::quote;

pub(super) fn synthesize(metadata: &GgufMetadata, tensors: &TensorTable, file: &[u8]) -> Result<Value, String> {
    let arch = metadata.get("general.architecture").and_then(GgufValue::as_str).unwrap_or_default();
    if let Some(kind) = metadata.get("general.type").and_then(GgufValue::as_str).filter(|&kind| kind != "model") {
        return Err(format!("has general.type {kind:?}; only \"model\" can be served"));
    }
    let keys = ArchKeys { metadata, arch, read: RefCell::default() };
    let mut config = common(&keys, tensors)?;
    if matches!(arch, "llama" | "gemma3" | "qwen3") {
        refuse_experts(&keys)?;
    }
    match arch {
        "llama" => llama(&keys, &mut config, rope_freqs(tensors, file)?)?,
        "gemma3" => gemma3(&keys, &mut config)?,
        "qwen3" => qwen3(&keys, &mut config)?,
        "qwen3moe" => qwen3moe(&keys, &mut config)?,
        "gpt-oss" => gpt_oss(&keys, &mut config)?,
        "llama4" => llama4(&keys, &mut config, rope_freqs(tensors, file)?)?,
        _ => unreachable!("an architecture with a table of names"),
    }
    keys.finish()?;
    Ok(Value::Object(config))
}

/// Mixtures of experts that go by a dense architecture's name (Mixtral) are not implemented.
fn refuse_experts(keys: &ArchKeys<'_>) -> Result<(), String> {
    for key in ["expert_count", "expert_used_count"] {
        if keys.uint(key)?.unwrap_or(0) != 0 {
            let problem = "mixtures of experts of this architecture are not implemented";
            return Err(format!("has {}: {problem}", keys.full(key)));
        }
    }
    Ok(())
}

/// What all architectures have.
fn common(keys: &ArchKeys<'_>, tensors: &TensorTable) -> Result<Map<String, Value>, String> {
    let embedding = tensors.get("token_embd.weight").ok_or("lacks tensor token_embd.weight")?;
    let hidden = keys.required_uint("embedding_length")?;
    let heads = keys.required_uint("attention.head_count")?;
    let default_head_dim = hidden.checked_div(heads).ok_or("has attention.head_count 0")?;
    let head_dim = keys.uint("attention.key_length")?.unwrap_or(default_head_dim);
    for key in ["attention.value_length", "rope.dimension_count"] {
        if let Some(other) = keys.uint(key)?.filter(|&other| other != head_dim) {
            return Err(format!("has {} {other}, unlike the head dimension {head_dim}", keys.full(key)));
        }
    }
    keys.uint("vocab_size")?; // the embedding knows better
    let config = json!({
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": keys.required_uint("feed_forward_length")?,
        "num_hidden_layers": keys.required_uint("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.uint("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "rms_norm_eps": keys.required_float("attention.layer_norm_rms_epsilon")?,
        "max_position_embeddings": keys.required_uint("context_length")?,
        "tie_word_embeddings": !tensors.contains_key("output.weight"),
    });
    Ok(object(config))
}

fn llama(keys: &ArchKeys<'_>, config: &mut Map<String, Value>, factors: Option<Vec<f32>>) -> Result<(), String> {
    let rope = factored(rope_parameters(keys, 10000.0)?, factors, keys)?;
    config.insert("architectures".into(), json!(["LlamaForCausalLM"]));
    config.insert("model_type".into(), "llama".into());
    config.insert("hidden_act".into(), "silu".into());
    config.insert("rope_parameters".into(), rope);
    Ok(())
}

fn gemma3(keys: &ArchKeys<'_>, config: &mut Map<String, Value>) -> Result<(), String> {
    let local_theta = keys.float("rope.freq_base_swa")?.unwrap_or(10000.0);
    let rope = json!({
        "full_attention": rope_parameters(keys, 1_000_000.0)?,
        "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
    });
    let layers = &config["num_hidden_layers"];
    // The file does not say by what queries are scaled: by the head dimension in every published size but 27B.
    let scalar = match layers.as_u64() {
        Some(62) => config["hidden_size"].as_u64().unwrap_or(0) / config["num_attention_heads"].as_u64().unwrap_or(1),
        _ => config["head_dim"].as_u64().unwrap_or(0),
    };
    match keys.get("attention.sliding_window_pattern") {
        None => config.insert("sliding_window_pattern".into(), 6.into()),
        Some(GgufValue::Array(GgufArray::Bool(sliding))) => config.insert("layer_types".into(), layer_types(sliding)),
        Some(_) => {
            let pattern = keys.required_uint("attention.sliding_window_pattern")?;
            config.insert("sliding_window_pattern".into(), pattern.into())
        }
    };
    config.insert("architectures".into(), json!(["Gemma3ForCausalLM"]));
    config.insert("model_type".into(), "gemma3_text".into());
    config.insert("hidden_activation".into(), "gelu_pytorch_tanh".into());
    config.insert("query_pre_attn_scalar".into(), scalar.into());
    config.insert("sliding_window".into(), keys.required_uint("attention.sliding_window")?.into());
    config.insert("final_logit_softcapping".into(), keys.float("final_logit_softcapping")?.into());
    config.insert("attn_logit_softcapping".into(), keys.float("attn_logit_softcapping")?.into());
    config.insert("rope_parameters".into(), rope);
    keys.get("mm.tokens_per_image"); // of the vision tower, which is another file
    Ok(())
}

fn qwen3(keys: &ArchKeys<'_>, config: &mut Map<String, Value>) -> Result<(), String> {
    config.insert("architectures".into(), json!(["Qwen3ForCausalLM"]));
    config.insert("model_type".into(), "qwen3".into());
    config.insert("hidden_act".into(), "silu".into());
    config.insert("rope_parameters".into(), rope_parameters(keys, 10000.0)?);
    Ok(())
}

fn qwen3moe(keys: &ArchKeys<'_>, config: &mut Map<String, Value>) -> Result<(), String> {
    qwen3(keys, config)?;
    let experts = json!({
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": keys.required_uint("expert_count")?,
        "num_experts_per_tok": keys.required_uint("expert_used_count")?,
        "moe_intermediate_size": keys.required_uint("expert_feed_forward_length")?,
        // As every published one: the file does not say.
        "norm_topk_prob": true,
    });
    config.extend(object(experts));
    Ok(())
}

/// What the file does not say is as in both published sizes.
fn gpt_oss(keys: &ArchKeys<'_>, config: &mut Map<String, Value>) -> Result<(), String> {
    let mut rope = rope_parameters(keys, 150_000.0)?;
    // The ends of YaRN's ramp are not rounded; of other architectures they are.
    rope["truncate"] = false.into();
    let gpt_oss = json!({
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "hidden_act": "silu",
        "attention_bias": true,
        "num_local_experts": keys.required_uint("expert_count")?,
        "num_experts_per_tok": keys.required_uint("expert_used_count")?,
        "intermediate_size": keys.required_uint("expert_feed_forward_length")?,
        "sliding_window": keys.required_uint("attention.sliding_window")?,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "rope_parameters": rope,
    });
    config.extend(object(gpt_oss));
    match keys.get("attention.sliding_window_pattern") {
        None => Ok(()),
        Some(pattern) if pattern.as_u64() == Some(2) => Ok(()),
        Some(GgufValue::Array(GgufArray::Bool(sliding))) => {
            config.insert("layer_types".into(), layer_types(sliding));
            Ok(())
        }
        Some(_) => {
            Err(format!("{} must be 2 or say it for every layer", keys.full("attention.sliding_window_pattern")))
        }
    }
}

/// What the file does not say is as in Scout and Maverick, which differ in their norms on queries and keys.
fn llama4(keys: &ArchKeys<'_>, config: &mut Map<String, Value>, factors: Option<Vec<f32>>) -> Result<(), String> {
    let experts = keys.required_uint("expert_count")?;
    if keys.get("attention.sliding_window").is_some() {
        return Err(format!("has {}, which is not implemented", keys.full("attention.sliding_window")));
    }
    let llama4 = json!({
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_act": "silu",
        "intermediate_size_mlp": config["intermediate_size"],
        "intermediate_size": keys.required_uint("expert_feed_forward_length")?,
        "num_local_experts": experts,
        "num_experts_per_tok": keys.required_uint("expert_used_count")?,
        "interleave_moe_layer_step": keys.required_uint("interleave_moe_layer_step")?,
        "use_qk_norm": experts != 128,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": true,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_parameters": factored(rope_parameters(keys, 500_000.0)?, factors, keys)?,
    });
    config.extend(object(llama4));
    Ok(())
}

/// The rotation `rope` with the divisors of its frequencies, where the file has them.
fn factored(mut rope: Value, factors: Option<Vec<f32>>, keys: &ArchKeys<'_>) -> Result<Value, String> {
    let Some(factors) = factors else { return Ok(rope) };
    if rope["rope_type"] != "default" {
        return Err(format!("has both {ROPE_FREQS} and {}", keys.full("rope.scaling.type")));
    }
    rope["rope_type"] = "freq_factors".into();
    rope["factors"] = factors.into();
    Ok(rope)
}

fn layer_types(sliding: &[bool]) -> Value {
    sliding.iter().map(|&sliding| if sliding { "sliding_attention" } else { "full_attention" }).collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => unreachable!("json! of braces is an object"),
    }
}

fn rope_parameters(keys: &ArchKeys<'_>, default_theta: f64) -> Result<Value, String> {
    let theta = keys.float("rope.freq_base")?.unwrap_or(default_theta);
    let kind = keys.get("rope.scaling.type").map(|kind| kind.as_str().unwrap_or("(not a string)"));
    let factor = keys.float("rope.scaling.factor")?;
    let original = keys.float("rope.scaling.original_context_length")?; // of the other kinds for information only
    keys.get("rope.scaling.finetuned");
    match (kind, factor) {
        (None | Some("none"), None) => Ok(json!({"rope_type": "default", "rope_theta": theta})),
        (Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "rope_theta": theta, "factor": factor})),
        (Some("yarn"), Some(factor)) => {
            let original =
                original.ok_or_else(|| format!("lacks {}", keys.full("rope.scaling.original_context_length")))?;
            Ok(json!({"rope_type": "yarn", "rope_theta": theta, "factor": factor,
                "original_max_position_embeddings": original,
                "beta_fast": keys.float("rope.scaling.yarn_beta_fast")?,
                "beta_slow": keys.float("rope.scaling.yarn_beta_slow")?}))
        }
        (Some("linear" | "yarn"), None) => Err(format!("lacks {}", keys.full("rope.scaling.factor"))),
        (None | Some("none"), Some(_)) => {
            Err(format!("has {} without a scaling type", keys.full("rope.scaling.factor")))
        }
        (Some(other), _) => {
            let key = keys.full("rope.scaling.type");
            Err(format!("has {key} {:?}, which is not implemented", quote(other)))
        }
    }
}

/// The divisors of the RoPE frequencies, if the file has them.
fn rope_freqs(tensors: &TensorTable, file: &[u8]) -> Result<Option<Vec<f32>>, String> {
    let Some(entry) = tensors.get(ROPE_FREQS) else { return Ok(None) };
    let [count] = entry.shape[..] else { return Err(format!("tensor {ROPE_FREQS}: is not a vector")) };
    const LONGEST: usize = 1 << 16;
    if count > LONGEST {
        return Err(format!("tensor {ROPE_FREQS}: has {count} elements; no head is that wide"));
    }
    let mut factors = vec![0.0; count];
    dequantize_row(entry.ty, &file[entry.bytes.clone()], &mut factors)
        .map_err(|e| format!("tensor {ROPE_FREQS}: {e}"))?;
    Ok(Some(factors))
}

/// The metadata under one architecture's name, which notes what was read.
struct ArchKeys<'a> {
    metadata: &'a GgufMetadata,
    arch: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> ArchKeys<'a> {
    fn full(&self, key: &str) -> String {
        format!("metadata key {}.{key}", self.arch)
    }

    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        let full = format!("{}.{key}", self.arch);
        let value = self.metadata.get(&full);
        self.read.borrow_mut().insert(full);
        value
    }

    fn uint(&self, key: &str) -> Result<Option<u64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let uint = value.as_u64().ok_or_else(|| format!("{} must be an integer from 0", self.full(key)))?;
        Ok(Some(uint))
    }

    fn float(&self, key: &str) -> Result<Option<f64>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let float = value.as_f64().filter(|f| f.is_finite());
        Ok(Some(float.ok_or_else(|| format!("{} must be a finite number", self.full(key)))?))
    }

    fn required_uint(&self, key: &str) -> Result<u64, String> {
        self.uint(key)?.ok_or_else(|| format!("lacks {}", self.full(key)))
    }

    fn required_float(&self, key: &str) -> Result<f64, String> {
        self.float(key)?.ok_or_else(|| format!("lacks {}", self.full(key)))
    }

    /// Refuses keys that nothing has read.
    fn finish(self) -> Result<(), String> {
        // Says from which files the weights were converted.
        self.get("tensor_data_layout");
        let prefix = format!("{}.", self.arch);
        let read = self.read.into_inner();
        match self.metadata.keys().find(|key| key.starts_with(&prefix) && !read.contains(*key)) {
            None => Ok(()),
            Some(key) => Err(format!("has metadata key {}, which is not implemented", quote(key))),
        }
    }
}
