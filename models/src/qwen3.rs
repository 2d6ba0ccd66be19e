//! Qwen3, dense (arXiv:2505.09388): Llama's layers with norms on each head's queries and keys, and no biases.

use plimsoll_nn::{
    Attention, AttentionShape, CheckpointError, Fields, ForwardBatch, KvCache, LayerInfo, Mlp, Model, ModelInfo,
    Residual, RmsNorm, Rope, Weights,
};
use plimsoll_ops::activation::silu_mul;
use plimsoll_ops::attention::AttentionParams;
use plimsoll_ops::rope::RopeTable;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame};
use crate::text_part::TextWeights;

struct Config {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    /// Not tied to the hidden size.
    head_dim: usize,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    rope: Rope,
    tie_word_embeddings: bool,
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
        let (hidden, head_dim, eps) = (config.hidden_size, config.head_dim, config.rms_norm_eps);
        let norm = |name| Ok(RmsNorm::new(weights.norm(name, hidden)?, eps));
        let params = AttentionParams { scale: (head_dim as f32).powf(-0.5), window: None, chunk: None, softcap: None };
        let inside = weights.pp("self_attn");
        let head_norm = |name| Ok(RmsNorm::new(inside.norm(name, head_dim)?, eps));
        let attention = Attention::new(index, config.attention_shape(), params, rope, &inside)?;
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            attention: attention.with_qk_norm(head_norm("q_norm")?, head_norm("k_norm")?),
            post_attention_norm: norm("post_attention_layernorm")?,
            mlp: Mlp::new(hidden, config.intermediate_size, silu_mul, &weights.pp("mlp"))?,
        })
    }
}

fn decoder(config: &Config, weights: &Weights<'_>) -> Result<Decoder<Layer>, CheckpointError> {
    let rope = config.rope.table(config.head_dim, config.max_position_embeddings)?;
    let layer = |index, weights: &Weights<'_>| Layer::new(config, index, rope.clone(), weights);
    Decoder::load(&config.frame(), &TextWeights::of(weights), config.num_hidden_layers, layer)
}

impl Config {
    fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let fields = Fields::new(config)?;
        fields.refuse(&["attention_bias", "use_sliding_window", "num_experts"])?;
        refuse_windows(fields)?;
        fields.only("hidden_act", "silu")?;
        let heads = fields.size("num_attention_heads")?;
        let parsed = Self {
            vocab_size: fields.size("vocab_size")?,
            hidden_size: fields.size("hidden_size")?,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.count("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: fields.optional_size("head_dim")?.unwrap_or(128),
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings: fields.context_length("max_position_embeddings")?,
            rope: Rope::of_config(fields, 10000.0)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        };
        parsed.attention_shape().check()?;
        Ok(parsed)
    }

    fn frame(&self) -> Frame {
        Frame {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            rms_norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }

    fn attention_shape(&self) -> AttentionShape {
        AttentionShape {
            hidden: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
        }
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
    let layer = LayerInfo { kv_heads: config.num_key_value_heads, head_dim: config.head_dim, group: 0 };
    Ok(ModelInfo {
        architecture: "Qwen3ForCausalLM".into(),
        layers: vec![layer; config.num_hidden_layers],
        groups: vec![None],
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_attention_heads: config.num_attention_heads,
        experts: None,
    })
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(decoder(&Config::parse(config)?, weights)?))
}
