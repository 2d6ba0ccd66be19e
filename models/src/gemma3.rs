//! Gemma 3, text only (arXiv:2503.19786): five layers with a sliding window to one with full attention, each kind with
//! its own RoPE base; norms on queries and keys, and before and after each block; embeddings scaled by sqrt(hidden).

use candle_core::Tensor;
use plimsoll_nn::{
    Attention, AttentionShape, CheckpointError, Embedding, Fields, ForwardBatch, Head, KvCache, Mlp, Model, ModelInfo,
    Residual, RmsNorm, Rope, Weights,
};
use plimsoll_ops::activation::{gelu_tanh_mul, softcap};
use plimsoll_ops::attention::AttentionParams;
use plimsoll_ops::rope::RopeTable;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame};
use crate::text_part::{self, TextWeights};

struct Config {
    architecture: &'static str,
    frame: Frame,
    intermediate_size: usize,
    /// Attention scores are divided by its square root.
    query_pre_attn_scalar: f64,
    /// Each layer's window in tokens; `None` is full attention.
    layer_windows: Vec<Option<u32>>,
    rope_full: Rope,
    rope_sliding: Rope,
    final_logit_softcapping: Option<f64>,
}

struct Gemma3 {
    /// Scaled by sqrt(hidden).
    decoder: Decoder<Layer>,
    final_logit_softcapping: Option<f32>,
}

struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    pre_feedforward_norm: RmsNorm,
    mlp: Mlp,
    post_feedforward_norm: RmsNorm,
}

impl Model for Gemma3 {
    fn forward(&self, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<Tensor> {
        let logits = self.decoder.forward(batch, cache)?;
        match self.final_logit_softcapping {
            Some(cap) => softcap(&logits, cap),
            None => Ok(logits),
        }
    }
}

impl DecoderLayer for Layer {
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<()> {
        let normed = x.norm(&self.input_norm)?;
        x.add_normed(self.attention.forward(&normed, batch, cache)?, &self.post_attention_norm);
        let normed = x.norm(&self.pre_feedforward_norm)?;
        x.add_normed(self.mlp.forward(&normed)?, &self.post_feedforward_norm);
        Ok(())
    }
}

impl Layer {
    fn new(config: &Config, index: usize, rope: RopeTable, weights: &Weights<'_>) -> Result<Self, CheckpointError> {
        let (shape, eps) = (config.frame.attention, config.frame.rms_norm_eps);
        let norm = |name| Ok(RmsNorm::new(weights.zero_centred_norm(name, shape.hidden)?, eps));
        let scale = config.query_pre_attn_scalar.powf(-0.5) as f32;
        let params = AttentionParams { scale, window: config.layer_windows[index], chunk: None, softcap: None };
        let inside = weights.pp("self_attn");
        let head_norm = |name| Ok(RmsNorm::new(inside.zero_centred_norm(name, shape.head_dim)?, eps));
        let attention = Attention::new(index, shape, params, rope, &inside)?;
        Ok(Self {
            input_norm: norm("input_layernorm")?,
            attention: attention.with_qk_norm(head_norm("q_norm")?, head_norm("k_norm")?),
            post_attention_norm: norm("post_attention_layernorm")?,
            pre_feedforward_norm: norm("pre_feedforward_layernorm")?,
            mlp: Mlp::new(shape.hidden, config.intermediate_size, gelu_tanh_mul, &weights.pp("mlp"))?,
            post_feedforward_norm: norm("post_feedforward_layernorm")?,
        })
    }
}

impl Gemma3 {
    fn new(config: &Config, TextWeights { inner, outer }: &TextWeights<'_>) -> Result<Self, CheckpointError> {
        let frame = &config.frame;
        let (hidden, head_dim, positions) =
            (frame.attention.hidden, frame.attention.head_dim, frame.max_position_embeddings);
        let full = config.rope_full.table(head_dim, positions)?;
        let sliding = config.rope_sliding.table(head_dim, positions)?;
        let layer = |(index, window): (usize, &Option<u32>)| {
            let rope = if window.is_some() { &sliding } else { &full };
            Layer::new(config, index, rope.clone(), &inner.pp("layers").pp(index))
        };
        let embed_tokens = inner.embedding("embed_tokens", frame.vocab_size, hidden)?;
        let layers = config.layer_windows.iter().enumerate().map(layer).collect::<Result<_, _>>()?;
        let norm = RmsNorm::new(inner.zero_centred_norm("norm", hidden)?, frame.rms_norm_eps);
        let table = [frame.vocab_size, hidden];
        let head = Head::new(norm, &embed_tokens, frame.tie_word_embeddings, table, outer)?;
        let embed_tokens = Embedding::scaled(embed_tokens, (hidden as f32).sqrt());
        Ok(Self {
            decoder: Decoder { embed_tokens, layers, head },
            final_logit_softcapping: config.final_logit_softcapping.map(|cap| cap as f32),
        })
    }
}

impl Config {
    /// What the published configs of the models that also see leave out is as transformers has it by default.
    fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let (fields, architecture) = text_part::fields(config, "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")?;
        fields.refuse(&["attention_bias", "attn_logit_softcapping", "use_bidirectional_attention"])?;
        let activation = fields.text("hidden_activation")?.unwrap_or("gelu_pytorch_tanh");
        if activation != "gelu_pytorch_tanh" {
            return Err(fields.wrong("hidden_activation", format!("{activation:?} is not implemented")));
        }
        let (rope_full, rope_sliding) = ropes(fields)?;
        Ok(Self {
            architecture,
            frame: frame(fields)?,
            intermediate_size: fields.size("intermediate_size")?,
            query_pre_attn_scalar: fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
            layer_windows: fields.layer_windows(|| full_every(fields))?,
            rope_full,
            rope_sliding,
            final_logit_softcapping: fields.positive("final_logit_softcapping")?,
        })
    }
}

fn frame(fields: Fields<'_>) -> Result<Frame, CheckpointError> {
    let attention = AttentionShape {
        hidden: fields.size("hidden_size")?,
        heads: fields.optional_size("num_attention_heads")?.unwrap_or(8),
        kv_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(4),
        head_dim: fields.optional_size("head_dim")?.unwrap_or(256),
    };
    attention.check()?;
    Ok(Frame {
        vocab_size: fields.optional_size("vocab_size")?.unwrap_or(262_208),
        attention,
        rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
        max_position_embeddings: match fields.get("max_position_embeddings") {
            Some(_) => fields.context_length("max_position_embeddings")?,
            None => 131_072,
        },
        tie_word_embeddings: fields.flag("tie_word_embeddings", true)?,
    })
}

/// Every how many layers one has full attention, by the older or the newer spelling.
fn full_every(fields: Fields<'_>) -> Result<usize, CheckpointError> {
    match fields.optional_size("sliding_window_pattern")? {
        Some(pattern) => Ok(pattern),
        None => Ok(fields.optional_size("_sliding_window_pattern")?.unwrap_or(6)),
    }
}

/// The rotations of full-attention and of sliding-window layers, by the newer or the older spelling.
fn ropes(fields: Fields<'_>) -> Result<(Rope, Rope), CheckpointError> {
    const FULL_THETA: f64 = 1_000_000.0;
    const SLIDING_THETA: f64 = 10_000.0;
    let theta = fields.positive("rope_theta")?.unwrap_or(FULL_THETA);
    let local = fields.positive("rope_local_base_freq")?.unwrap_or(SLIDING_THETA);
    let Some(parameters) = fields.nested("rope_parameters")? else {
        return Ok((Rope::parse(fields.nested("rope_scaling")?, theta)?, Rope::parse(None, local)?));
    };
    let (full, sliding) = (parameters.nested("full_attention")?, parameters.nested("sliding_attention")?);
    if full.is_none() || sliding.is_none() {
        let problem = "must hold both full_attention and sliding_attention: each kind of layer has its own";
        return Err(fields.wrong("rope_parameters", problem));
    }
    let full = Rope::parse(full, theta)?;
    full.check_older(fields)?;
    Ok((full, Rope::parse(sliding, local)?))
}

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    Ok(config.frame.info(config.architecture, &config.layer_windows, config.intermediate_size, None))
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(Gemma3::new(&Config::parse(config)?, &text_part::weights(config, weights))?))
}
