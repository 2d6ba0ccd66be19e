//! What a step must read of a model's weights, and compute with them. Of a mixture's experts, those that the step's tokens
//! are expected to go to, were they spread evenly.

use std::path::Path;

use anyhow::{Context, Result};
use plimsoll_nn::ModelInfo;
use serde_json::Value;

/// A model's weights as steps meet them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Traffic {
    /// Bytes of all but the rows of an embedding that is no head as well.
    bytes: u64,
    /// Bytes of one expert of every layer.
    expert_bytes: u64,
    /// 0 where there are none.
    experts: u64,
    /// Experts a token, of a layer.
    top: u64,
    /// Operations a token takes before the head: two a weight that it meets.
    flops_per_token: u64,
    /// Operations the head takes for a token whose successor is asked for.
    head_flops: u64,
}

impl Traffic {
    /// Of a config.json.
    ///
    /// # Errors
    /// It cannot be read, or no model is made of it.
    pub fn of_file(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let config: Value = serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        Self::of(&config, &(plimsoll_models::find(&config)?.info)(&config)?)
    }

    /// # Errors
    /// No model is made of `config`.
    pub fn of(config: &Value, info: &ModelInfo) -> Result<Self> {
        let unread = unread_embedding(config, info);
        let bytes = plimsoll_models::dummy_bytes(config)? - unread;
        let head_flops = BF16 * info.vocab_size as u64 * info.hidden_size as u64;
        // In bf16, two bytes are a weight, and a weight is two operations.
        let mut plain = config.clone();
        plain.as_object_mut().map(|fields| fields.remove("quantization_config"));
        let Some((experts, top)) = mixture(config) else {
            let flops_per_token = plimsoll_models::dummy_bytes(&plain)? - unread - head_flops;
            return Ok(Self { bytes, expert_bytes: 0, experts: 0, top: 0, flops_per_token, head_flops });
        };
        let fewer = plimsoll_models::dummy_bytes(&with_experts(config, experts - 1))? - unread;
        let flops_per_token = plimsoll_models::dummy_bytes(&with_experts(&plain, top))? - unread - head_flops;
        Ok(Self { bytes, expert_bytes: bytes - fewer, experts, top, flops_per_token, head_flops })
    }

    /// Bytes that a step of so many tokens reads.
    pub fn step_bytes(&self, tokens: u32) -> u64 {
        if self.experts == 0 {
            return self.bytes;
        }
        let passed_over = (1.0 - self.top as f64 / self.experts as f64).powi(tokens as i32);
        self.bytes - (passed_over * (self.experts * self.expert_bytes) as f64) as u64
    }

    /// Operations that so many tokens take, `sampled` of which get a successor: of a prompt it is the last alone.
    pub fn flops(&self, tokens: u64, sampled: u64) -> u64 {
        self.flops_per_token * tokens + self.head_flops * sampled
    }
}

const BF16: u64 = 2;

const COUNTS: [&str; 2] = ["num_local_experts", "num_experts"];

/// Experts of a layer and a token.
fn mixture(config: &Value) -> Option<(u64, u64)> {
    let text = config.get("text_config").unwrap_or(config);
    let experts = COUNTS.iter().find_map(|name| text[name].as_u64()).filter(|experts| *experts > 1)?;
    Some((experts, text["num_experts_per_tok"].as_u64().unwrap_or(1)))
}

/// The same model with another number of experts.
fn with_experts(config: &Value, experts: u64) -> Value {
    let mut config = config.clone();
    let text = if config.get("text_config").is_some() { &mut config["text_config"] } else { &mut config };
    for name in COUNTS.into_iter().filter(|name| text.get(name).is_some()).collect::<Vec<_>>() {
        text[name] = experts.into();
    }
    let top = text["num_experts_per_tok"].as_u64().unwrap_or(1);
    text["num_experts_per_tok"] = top.min(experts).into();
    config
}

/// Bytes of an embedding table, of which a step reads a few rows; 0 where the head is the same table.
fn unread_embedding(config: &Value, info: &ModelInfo) -> u64 {
    match config["tie_word_embeddings"].as_bool() {
        Some(false) => BF16 * info.vocab_size as u64 * info.hidden_size as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(name: &str) -> Traffic {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/architectures");
        Traffic::of_file(&configs.join(format!("{name}.json"))).unwrap()
    }

    #[test]
    fn a_dense_model_is_read_whole_whatever_the_step() {
        let llama = traffic("llama-3.1-8b");
        assert_eq!(llama.step_bytes(1), llama.step_bytes(256));
        assert_eq!(llama.step_bytes(1), llama.flops(1, 1));
    }

    #[test]
    fn a_prompt_s_head_is_computed_once() {
        // 128,256 tokens of 4096 features; 16 billion operations a token in all.
        let llama = traffic("llama-3.1-8b");
        let head = 2 * 128_256 * 4096;
        assert_eq!(llama.flops(1, 1) - llama.flops(1, 0), head);
        assert_eq!(llama.flops(8192, 1), 8192 * llama.flops(1, 1) - 8191 * head);
    }

    #[test]
    fn a_mixture_is_read_as_far_as_its_tokens_go() {
        // 24 layers of 32 experts of three matrices of 2880 x 2880, 17 bytes for each 32 weights.
        let oss = traffic("gpt-oss-20b");
        let expert = 24 * 3 * 2880 * 2880 / 32 * 17;
        let biases = 24 * 3 * 2880 * 2;
        assert!(oss.expert_bytes.abs_diff(expert + biases) < 1_000_000, "{} and {expert}", oss.expert_bytes);
        assert!(oss.bytes - oss.step_bytes(1) > 27 * expert && oss.bytes - oss.step_bytes(1) < 29 * expert);
        assert!(oss.step_bytes(4096) >= oss.bytes - 1);
        // 3.6 billion weights are met by a token, the head among them.
        assert!((5_000_000_000..8_500_000_000).contains(&oss.flops(1, 1)), "{}", oss.flops(1, 1));
    }
}
