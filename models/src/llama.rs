//! Llama 1 to 3 (arXiv:2302.13971, arXiv:2407.21783), and Mistral (arXiv:2310.06825), which is Llama with a sliding
//! window.

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
    architecture: &'static str,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    rms_norm_eps: f64,
    max_position_embeddings: usize,
    rope: Rope,
    /// Tokens that attention reaches back in every layer; Mistral's alone.
    sliding_window: Option<u32>,
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
        let hidden = config.hidden_size;
        let norm = |name| Ok(RmsNorm::new(weights.norm(name, hidden)?, config.rms_norm_eps));
        let scale = (config.head_dim as f32).powf(-0.5);
        let params = AttentionParams { scale, window: config.sliding_window, chunk: None, softcap: None };
        let attention = Attention::new(index, config.attention_shape(), params, rope, &weights.pp("self_attn"))?;
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            attention,
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
        fields.refuse(&["attention_bias", "mlp_bias", "rope_interleaved"])?;
        fields.only("hidden_act", "silu")?;
        let is_mistral = fields.text("model_type")? == Some("mistral");
        let (hidden_size, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        let parsed = Self {
            architecture: if is_mistral { "MistralForCausalLM" } else { "LlamaForCausalLM" },
            vocab_size: fields.size("vocab_size")?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.count("num_hidden_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: fields.optional_size("head_dim")?.unwrap_or(hidden_size / heads),
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            max_position_embeddings: fields.context_length("max_position_embeddings")?,
            rope: Rope::of_config(fields, 10000.0)?,
            sliding_window: match is_mistral {
                true => fields.optional_size("sliding_window")?.map(|window| window as u32),
                false => None,
            },
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

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    let layer = LayerInfo { kv_heads: config.num_key_value_heads, head_dim: config.head_dim, group: 0 };
    Ok(ModelInfo {
        architecture: config.architecture.into(),
        layers: vec![layer; config.num_hidden_layers],
        groups: vec![config.sliding_window],
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
