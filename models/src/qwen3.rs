//! Qwen3, dense (arXiv:2505.09388): Llama's layers with norms on each head's queries and keys, and no biases.

use plimsoll_nn::{
    Attention, CheckpointError, Fields, ForwardBatch, KvCache, Mlp, Model, ModelInfo, Residual, RmsNorm, Rope, Weights,
};
use plimsoll_ops::activation::silu_mul;
use plimsoll_ops::attention::AttentionParams;
use plimsoll_ops::rope::RopeTable;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame};
use crate::text_part::TextWeights;

/// Of a head, where a config does not say: it is not tied to the hidden size.
pub(crate) const HEAD_DIM: usize = 128;

struct Config {
    frame: Frame,
    intermediate_size: usize,
    num_hidden_layers: usize,
    rope: Rope,
}

struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    mlp: Mlp,
}

impl DecoderLayer for Layer {
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<()> {
        let normed = x.norm(&self.input_norm)?;
        x.add(self.attention.forward(&normed, batch, cache)?);
        let normed = x.norm(&self.post_attention_norm)?;
        x.add(self.mlp.forward(&normed)?);
        Ok(())
    }
}

impl Layer {
    fn new(config: &Config, index: usize, rope: RopeTable, weights: &Weights<'_>) -> Result<Self, CheckpointError> {
        let shape = config.frame.attention;
        let params =
            AttentionParams { scale: config.frame.attention_scale(), window: None, chunk: None, softcap: None };
        let inside = weights.pp("self_attn");
        let head_norm = |name| Ok(RmsNorm::new(inside.norm(name, shape.head_dim)?, config.frame.rms_norm_eps));
        let attention = Attention::new(index, shape, params, rope, &inside)?;
        Ok(Self {
            input_norm: config.frame.norm(weights, "input_layernorm")?,
            attention: attention.with_qk_norm(head_norm("q_norm")?, head_norm("k_norm")?),
            post_attention_norm: config.frame.norm(weights, "post_attention_layernorm")?,
            mlp: Mlp::new(shape.hidden, config.intermediate_size, silu_mul, &weights.pp("mlp"))?,
        })
    }
}

fn decoder(config: &Config, weights: &Weights<'_>) -> Result<Decoder<Layer>, CheckpointError> {
    let rope = config.rope.table(config.frame.attention.head_dim, config.frame.max_position_embeddings)?;
    let layer = |index, weights: &Weights<'_>| Layer::new(config, index, rope.clone(), weights);
    Decoder::load(&config.frame, &TextWeights::of(weights), config.num_hidden_layers, layer)
}

impl Config {
    fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let fields = Fields::new(config)?;
        fields.refuse(&["attention_bias", "use_sliding_window", "num_experts"])?;
        refuse_windows(fields)?;
        fields.only("hidden_act", "silu")?;
        Ok(Self {
            frame: Frame::parse(fields, Some(HEAD_DIM), 1e-6)?,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.count("num_hidden_layers")?,
            rope: Rope::of_config(fields, 10000.0)?,
        })
    }
}

/// No published Qwen3 has a layer with a window, though the format has a place for it.
pub(crate) fn refuse_windows(fields: Fields<'_>) -> Result<(), CheckpointError> {
    let types = fields.list("layer_types")?.unwrap_or_default();
    match types.iter().find(|kind| kind.as_str() != Some("full_attention")) {
        None => Ok(()),
        Some(kind) => Err(fields.wrong("layer_types", format!("{kind} is not implemented for this architecture"))),
    }
}

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    let windows = vec![None; config.num_hidden_layers];
    Ok(config.frame.info("Qwen3ForCausalLM", &windows, config.intermediate_size, None))
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(decoder(&Config::parse(config)?, weights)?))
}
