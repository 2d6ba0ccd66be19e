//! What a model's step moves and computes, found without knowing its architecture: by dry runs of its loading, and by how
//! their sizes change when the vocabulary has one token more, or a layer one expert less.

use anyhow::{Context, Result};
use plimsoll_nn::ModelInfo;
use plimsoll_sim::{AttentionWork, Experts, ModelWork};
use serde_json::{Map, Value};

use super::Quantize;

/// Where a config says how many experts a layer has.
const EXPERT_COUNTS: [&str; 2] = ["num_local_experts", "num_experts"];
const ACTIVE_EXPERTS: &str = "num_experts_per_tok";

/// Numbers of weights, and their bytes as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sizes {
    pub(super) parameters: f64,
    /// Those of the embedding and the head, which are one table where they are tied.
    vocabulary: f64,
    is_tied: bool,
    experts: Option<ExpertSizes>,
    stored: f64,
    stored_vocabulary: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct ExpertSizes {
    count: u32,
    active: u32,
    parameters_each: f64,
    stored_each: f64,
}

impl Sizes {
    pub(super) fn new(config: &Value) -> Result<Self> {
        let plain = unquantized(config);
        let parameters = bf16_numbers(&plain)?;
        let more = grown(&plain, "vocab_size", 1)?;
        let row = bf16_numbers(&more)? - parameters;
        let hidden = number(&plain, "hidden_size").context("the config has no hidden_size")?;
        let vocab = number(&plain, "vocab_size").context("the config has no vocab_size")?;
        let stored = bytes(config)?;
        let stored_row = bytes(&grown(config, "vocab_size", 1)?)? - stored;
        Ok(Self {
            parameters,
            vocabulary: row * vocab,
            is_tied: row < 1.5 * hidden,
            experts: experts(config, &plain, parameters, stored)?,
            stored,
            stored_vocabulary: stored_row * vocab,
        })
    }

    /// Numbers of weights that a token is multiplied with; the embedding's table is not, where it is not the head.
    pub(super) fn active_parameters(&self) -> f64 {
        let idle = self.experts.map_or(0.0, |e| f64::from(e.count - e.active) * e.parameters_each);
        self.parameters - idle - if self.is_tied { 0.0 } else { self.vocabulary / 2.0 }
    }

    pub(super) fn weight_bytes(&self, quantize: Option<Quantize>) -> u64 {
        self.bytes_of(quantize, self.parameters - self.vocabulary, self.stored - self.stored_vocabulary).round() as u64
            + self.stored_vocabulary as u64
    }

    fn bytes_of(&self, quantize: Option<Quantize>, parameters: f64, stored: f64) -> f64 {
        quantize.map_or(stored, |format| parameters * format.bits() / 8.0)
    }

    /// For the cost model, with a KV cache of elements of `kv_bytes`.
    pub(super) fn work(&self, info: &ModelInfo, quantize: Option<Quantize>, kv_bytes: usize) -> ModelWork {
        let head_share = if self.is_tied { 1.0 } else { 0.5 };
        let head = head_share * self.vocabulary;
        let (all, all_stored) = self
            .experts
            .map_or((0.0, 0.0), |e| (f64::from(e.count) * e.parameters_each, f64::from(e.count) * e.stored_each));
        let matrices = self.parameters - self.vocabulary - all;
        let stored = self.stored - self.stored_vocabulary - all_stored;
        ModelWork {
            dense_bytes: self.bytes_of(quantize, matrices, stored) + head_share * self.stored_vocabulary,
            dense_flops: 2.0 * matrices,
            head_flops: 2.0 * head,
            experts: self.experts.map(|e| Experts {
                count: e.count,
                active: e.active,
                bytes_each: self.bytes_of(quantize, e.parameters_each, e.stored_each),
                flops_each: 2.0 * e.parameters_each,
            }),
            attention: attention(info, kv_bytes),
        }
    }
}

fn attention(info: &ModelInfo, kv_bytes: usize) -> Vec<AttentionWork> {
    let group = |(group, &window): (usize, &Option<u32>)| {
        let layers = info.layers.iter().filter(|layer| layer.group == group);
        // A query times a key, and a weight times a value: a product and a sum for each element of either.
        let flops = layers.map(|layer| 4.0 * info.num_attention_heads as f64 * layer.head_dim as f64).sum();
        let bytes_per_token = info.kv_bytes_per_token(group, kv_bytes) as f64;
        AttentionWork { window, bytes_per_token, flops_per_pair: flops }
    };
    info.groups.iter().enumerate().map(group).collect()
}

/// None: the config has no experts to choose among.
fn experts(config: &Value, plain: &Value, parameters: f64, stored: f64) -> Result<Option<ExpertSizes>> {
    let Some(key) = EXPERT_COUNTS.into_iter().find(|key| number(config, key).is_some()) else { return Ok(None) };
    let (count, active) = (number(config, key).unwrap_or(0.0), number(config, ACTIVE_EXPERTS).unwrap_or(1.0));
    if count < 2.0 || active < 1.0 || active >= count {
        return Ok(None);
    }
    Ok(Some(ExpertSizes {
        count: count as u32,
        active: active as u32,
        parameters_each: parameters - bf16_numbers(&grown(plain, key, -1)?)?,
        stored_each: stored - bytes(&grown(config, key, -1)?)?,
    }))
}

/// As it would be published without quantization, in bf16.
fn unquantized(config: &Value) -> Value {
    let mut plain = config.clone();
    for part in parts(&mut plain) {
        part.remove("quantization_config");
        part.remove("torch_dtype");
        part.insert("dtype".to_owned(), "bfloat16".into());
    }
    plain
}

/// The config itself, and the part that speaks of the text model, where a model has others beside it.
fn parts(config: &mut Value) -> Vec<&mut Map<String, Value>> {
    let Some(whole) = config.as_object_mut() else { return Vec::new() };
    if whole.get("text_config").is_some_and(Value::is_object) {
        return whole.get_mut("text_config").and_then(Value::as_object_mut).into_iter().collect();
    }
    vec![whole]
}

fn number(config: &Value, key: &str) -> Option<f64> {
    let nested = config.get("text_config").and_then(|text| text.get(key));
    nested.or_else(|| config.get(key)).and_then(Value::as_f64)
}

/// The config with `key` greater by `by`.
fn grown(config: &Value, key: &str, by: i64) -> Result<Value> {
    let mut config = config.clone();
    for part in parts(&mut config) {
        if let Some(value) = part.get(key).and_then(Value::as_i64) {
            part.insert(key.to_owned(), (value + by).into());
        }
    }
    Ok(config)
}

fn bytes(config: &Value) -> Result<f64> {
    Ok(plimsoll_models::dummy_bytes(config)? as f64)
}

fn bf16_numbers(config: &Value) -> Result<f64> {
    Ok(bytes(config)? / 2.0)
}
