//! gpt-oss (arXiv:2508.10925): mixtures of experts in every layer, each token through four of them; attention with
//! sinks and biases, over the last 128 tokens in every other layer; YaRN.

#[cfg(test)]
mod tests;

use plimsoll_nn::{
    Attention, CheckpointError, ExpertsInfo, ExpertsShape, Fields, ForwardBatch, KvCache, Model, ModelInfo, Moe,
    Residual, RmsNorm, Rope, Weights,
};
use plimsoll_ops::attention::AttentionParams;
use plimsoll_ops::moe::{Activation, Weighting};
use plimsoll_ops::rope::RopeTable;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame, experts_per_token};
use crate::text_part::TextWeights;

struct Config {
    frame: Frame,
    /// Of one expert.
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    activation: Activation,
    /// Each layer's window in tokens; `None` is full attention.
    layer_windows: Vec<Option<u32>>,
    rope: Rope,
}

struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    moe: Moe,
}

impl DecoderLayer for Layer {
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<()> {
        let normed = x.norm(&self.input_norm)?;
        x.add(self.attention.forward(&normed, batch, cache)?);
        let normed = x.norm(&self.post_attention_norm)?;
        x.add(self.moe.forward(&normed, batch)?);
        Ok(())
    }
}

impl Layer {
    fn new(config: &Config, index: usize, rope: RopeTable, weights: &Weights<'_>) -> Result<Self, CheckpointError> {
        let (shape, scale) = (config.frame.attention, config.frame.attention_scale());
        let params = AttentionParams { scale, window: config.layer_windows[index], chunk: None, softcap: None };
        let inside = weights.pp("self_attn");
        let attention = Attention::with_biases(index, shape, params, rope, &inside)?;
        Ok(Self {
            input_norm: config.frame.norm(weights, "input_layernorm")?,
            attention: attention.with_sinks(inside.parameter("sinks", shape.heads)?),
            post_attention_norm: config.frame.norm(weights, "post_attention_layernorm")?,
            moe: config.moe(&weights.pp("mlp"))?,
        })
    }
}

fn decoder(config: &Config, weights: &Weights<'_>) -> Result<Decoder<Layer>, CheckpointError> {
    let rope = config.rope.table(config.frame.attention.head_dim, config.frame.max_position_embeddings)?;
    let layer = |index, weights: &Weights<'_>| Layer::new(config, index, rope.clone(), weights);
    Decoder::load(&config.frame, &TextWeights::of(weights), config.layer_windows.len(), layer)
}

impl Config {
    fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let fields = Fields::new(config)?;
        refuse_variants(fields)?;
        let alpha = fields.positive("swiglu_alpha")?.unwrap_or(1.702) as f32;
        let limit = fields.positive("swiglu_limit")?.unwrap_or(7.0) as f32;
        let num_local_experts = fields.count("num_local_experts")?;
        Ok(Self {
            frame: Frame::parse(fields, None, 1e-5)?,
            intermediate_size: fields.size("intermediate_size")?,
            num_local_experts,
            num_experts_per_tok: experts_per_token(fields, num_local_experts)?,
            activation: Activation::ClampedSwiglu { alpha, limit },
            // Every other layer has a window, from the first on.
            layer_windows: fields.layer_windows(|| Ok(2))?,
            rope: Rope::of_config(fields, 150_000.0)?,
        })
    }

    fn moe(&self, weights: &Weights<'_>) -> Result<Moe, CheckpointError> {
        let hidden = self.frame.attention.hidden;
        let router = weights.router("router", [self.num_local_experts, hidden], true)?;
        let shape = ExpertsShape {
            experts: self.num_local_experts,
            hidden,
            intermediate: self.intermediate_size,
            has_biases: true,
            alternating: true,
        };
        let experts = weights.pp("experts").experts(shape, self.activation)?;
        Ok(Moe::new(router, experts, self.num_experts_per_tok, Weighting::AmongChosen))
    }
}

/// Refuses what no published gpt-oss has. The rotation and the heads must be given: there is no telling which ones a config
/// without them means.
fn refuse_variants(fields: Fields<'_>) -> Result<(), CheckpointError> {
    fields.only("hidden_act", "silu")?;
    if !fields.flag("attention_bias", true)? {
        return Err(fields.wrong("attention_bias", "false is not implemented for this architecture"));
    }
    if fields.get("rope_parameters").is_none() && fields.get("rope_scaling").is_none() {
        return Err(fields.wrong("rope_scaling", "is missing"));
    }
    fields.size("num_key_value_heads").and(fields.size("head_dim")).map(drop)
}

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    let intermediate_size = config.intermediate_size;
    let experts = ExpertsInfo { top: config.num_experts_per_tok, intermediate_size };
    Ok(config.frame.info("GptOssForCausalLM", &config.layer_windows, intermediate_size, Some(experts)))
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(decoder(&Config::parse(config)?, weights)?))
}
