//! Llama 1 to 3 (arXiv:2302.13971, arXiv:2407.21783), and Mistral (arXiv:2310.06825), which is Llama with a sliding
//! window.

use plimsoll_nn::{
    Attention, CheckpointError, Fields, ForwardBatch, KvCache, Mlp, Model, ModelInfo, Residual, RmsNorm, Rope, Weights,
};
use plimsoll_ops::activation::silu_mul;
use plimsoll_ops::attention::AttentionParams;
use plimsoll_ops::rope::RopeTable;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame};
use crate::text_part::TextWeights;

struct Config {
    architecture: &'static str,
    frame: Frame,
    intermediate_size: usize,
    num_hidden_layers: usize,
    rope: Rope,
    /// Tokens that attention reaches back in every layer; Mistral's alone.
    sliding_window: Option<u32>,
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
        let (scale, window) = (config.frame.attention_scale(), config.sliding_window);
        let params = AttentionParams { scale, window, chunk: None, softcap: None };
        let attention = Attention::new(index, config.frame.attention, params, rope, &weights.pp("self_attn"))?;
        Ok(Self {
            input_norm: config.frame.norm(weights, "input_layernorm")?,
            attention,
            post_attention_norm: config.frame.norm(weights, "post_attention_layernorm")?,
            mlp: Mlp::new(config.frame.attention.hidden, config.intermediate_size, silu_mul, &weights.pp("mlp"))?,
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
        fields.refuse(&["attention_bias", "mlp_bias", "rope_interleaved"])?;
        fields.only("hidden_act", "silu")?;
        let is_mistral = fields.text("model_type")? == Some("mistral");
        Ok(Self {
            architecture: if is_mistral { "MistralForCausalLM" } else { "LlamaForCausalLM" },
            frame: Frame::parse(fields, None, 1e-6)?,
            intermediate_size: fields.size("intermediate_size")?,
            num_hidden_layers: fields.count("num_hidden_layers")?,
            rope: Rope::of_config(fields, 10000.0)?,
            sliding_window: match is_mistral {
                true => fields.optional_size("sliding_window")?.map(|window| window as u32),
                false => None,
            },
        })
    }
}

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    let windows = vec![config.sliding_window; config.num_hidden_layers];
    Ok(config.frame.info(config.architecture, &windows, config.intermediate_size, None))
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(decoder(&Config::parse(config)?, weights)?))
}
