//! Llama 4, text only (Scout and Maverick; "The Llama 4 herd", Meta 2025). Three layers of four have rotary positions and
//! attend within chunks of the sequence; the fourth has neither, and queries that grow with their position
//! (arXiv:2501.19399). The feed-forward layer, or every other one, is a mixture of experts beside one that all tokens pass.

#[cfg(test)]
mod tests;

use plimsoll_nn::{
    Attention, CheckpointError, ExpertsInfo, ExpertsShape, Fields, ForwardBatch, KvCache, Mlp, Model, ModelInfo, Moe,
    Residual, RmsNorm, Rope, Weights,
};
use plimsoll_ops::activation::silu_mul;
use plimsoll_ops::attention::AttentionParams;
use plimsoll_ops::moe::{Activation, Weighting};
use plimsoll_ops::rope::RopeTable;
use plimsoll_ops::temperature::Temperature;
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame, experts_per_token};
use crate::text_part::{self, TextWeights};

struct Config {
    architecture: &'static str,
    frame: Frame,
    /// Of one expert, and of the shared one.
    intermediate_size: usize,
    /// Of a layer without experts.
    intermediate_size_mlp: usize,
    layers: Vec<LayerKind>,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    rope: Rope,
    /// Queries and keys are normalized in the layers that have rotary positions.
    use_qk_norm: bool,
    /// Of queries in the layers that have none.
    temperature: Option<Temperature>,
}

/// What differs from layer to layer.
#[derive(Clone, Copy)]
struct LayerKind {
    has_rope: bool,
    /// Tokens of a chunk; `None` is full attention.
    chunk: Option<u32>,
    is_moe: bool,
}

struct Layer {
    input_norm: RmsNorm,
    attention: Attention,
    post_attention_norm: RmsNorm,
    feed_forward: FeedForward,
}

enum FeedForward {
    Dense(Mlp),
    Sparse(Moe),
}

impl DecoderLayer for Layer {
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<()> {
        let normed = x.norm(&self.input_norm)?;
        x.add(self.attention.forward(&normed, batch, cache)?);
        let normed = x.norm(&self.post_attention_norm)?;
        x.add(match &self.feed_forward {
            FeedForward::Dense(mlp) => mlp.forward(&normed)?,
            FeedForward::Sparse(moe) => moe.forward(&normed, batch)?,
        });
        Ok(())
    }
}

impl Layer {
    fn new(config: &Config, index: usize, rope: RopeTable, weights: &Weights<'_>) -> Result<Self, CheckpointError> {
        let feed_forward = weights.pp("feed_forward");
        Ok(Self {
            input_norm: config.frame.norm(weights, "input_layernorm")?,
            attention: config.attention(index, rope, &weights.pp("self_attn"))?,
            post_attention_norm: config.frame.norm(weights, "post_attention_layernorm")?,
            feed_forward: match config.layers[index].is_moe {
                true => FeedForward::Sparse(config.moe(&feed_forward)?),
                false => {
                    let (hidden, width) = (config.frame.attention.hidden, config.intermediate_size_mlp);
                    FeedForward::Dense(Mlp::new(hidden, width, silu_mul, &feed_forward)?)
                }
            },
        })
    }
}

fn decoder(config: &Config, weights: &TextWeights<'_>) -> Result<Decoder<Layer>, CheckpointError> {
    let rotating = config.rope.table(config.frame.attention.head_dim, config.frame.max_position_embeddings)?;
    let still = RopeTable::new(&[], 1.0, config.frame.max_position_embeddings);
    Decoder::load(&config.frame, weights, config.layers.len(), |index, weights| {
        let rope = if config.layers[index].has_rope { &rotating } else { &still };
        Layer::new(config, index, rope.clone(), weights)
    })
}

impl Config {
    fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let (fields, architecture) = text_part::fields(config, "Llama4ForCausalLM", "Llama4ForConditionalGeneration")?;
        fields.refuse(&["attention_bias"])?;
        fields.only("hidden_act", "silu")?;
        let num_local_experts = fields.count("num_local_experts")?;
        Ok(Self {
            architecture,
            frame: Frame::parse(fields, None, 1e-5)?,
            intermediate_size: fields.size("intermediate_size")?,
            intermediate_size_mlp: fields.size("intermediate_size_mlp")?,
            layers: layers(fields)?,
            num_local_experts,
            num_experts_per_tok: match fields.get("num_experts_per_tok") {
                Some(_) => experts_per_token(fields, num_local_experts)?,
                None => 1,
            },
            rope: Rope::of_config(fields, 500_000.0)?,
            use_qk_norm: fields.flag("use_qk_norm", true)?,
            temperature: temperature(fields)?,
        })
    }

    /// The published model normalizes queries and keys after it rotated them; rotations keep their lengths, so it is the
    /// same before.
    fn attention(&self, index: usize, rope: RopeTable, weights: &Weights<'_>) -> Result<Attention, CheckpointError> {
        let LayerKind { has_rope, chunk, .. } = self.layers[index];
        // A chunk is seen through a window of its length: the cache need not keep more.
        let params = AttentionParams { scale: self.frame.attention_scale(), window: chunk, chunk, softcap: None };
        let shape = self.frame.attention;
        let weights = weights.clone().with_paired_heads(shape.head_dim);
        let mut attention = Attention::new(index, shape, params, rope, &weights)?;
        if has_rope && self.use_qk_norm {
            let norm = RmsNorm::new(weights.unit_norm(shape.head_dim)?, self.frame.rms_norm_eps);
            attention = attention.with_qk_norm(norm.clone(), norm);
        }
        Ok(match self.temperature {
            Some(temperature) if !has_rope => attention.with_temperature(temperature),
            _ => attention,
        })
    }

    fn moe(&self, weights: &Weights<'_>) -> Result<Moe, CheckpointError> {
        let (hidden, intermediate) = (self.frame.attention.hidden, self.intermediate_size);
        let router = weights.router("router", [self.num_local_experts, hidden], false)?;
        let shape = ExpertsShape {
            experts: self.num_local_experts,
            hidden,
            intermediate,
            has_biases: false,
            alternating: false,
        };
        let experts = weights.pp("experts").experts(shape, Activation::SiluMul)?;
        let shared = Mlp::new(hidden, intermediate, silu_mul, &weights.pp("shared_expert"))?;
        Ok(Moe::new(router, experts, self.num_experts_per_tok, Weighting::SigmoidOfInput).with_shared(shared))
    }
}

/// By default every fourth layer has neither rotary positions nor chunks, and every layer is a mixture of experts.
fn layers(fields: Fields<'_>) -> Result<Vec<LayerKind>, CheckpointError> {
    let layers = fields.count("num_hidden_layers")?;
    let interval = fields.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let step = fields.optional_size("interleave_moe_layer_step")?.unwrap_or(1);
    let of_layers = |name: &str| match fields.list(name)? {
        Some(listed) if !listed.is_empty() && listed.len() < layers => {
            Err(fields.wrong(name, format!("lists {} layers, num_hidden_layers is {layers}", listed.len())))
        }
        listed => Ok(listed.filter(|listed| !listed.is_empty())),
    };
    // Named for what it is not: 1 is a layer with rotary positions.
    let (rope, types) = (of_layers("no_rope_layers")?, of_layers("layer_types")?);
    let moe_layers = fields.list("moe_layers")?;
    let is_layer = |index: &&Value| index.as_u64().is_some_and(|index| index < layers as u64);
    if let Some(index) = moe_layers.unwrap_or_default().iter().find(|index| !is_layer(index)) {
        return Err(fields.wrong("moe_layers", format!("{index} is none of {layers} layers")));
    }
    let kind = |index: usize| {
        let has_rope = match rope.map(|listed| listed[index].as_u64()) {
            None => !(index + 1).is_multiple_of(interval),
            Some(Some(flag @ 0..=1)) => flag == 1,
            Some(_) => return Err(fields.wrong("no_rope_layers", "must be a list of 0 and 1")),
        };
        let is_chunked = match types.map(|listed| listed[index].as_str()) {
            None => has_rope,
            Some(Some("chunked_attention")) => true,
            Some(Some("full_attention")) => false,
            Some(_) => {
                let problem = format!("{} is not implemented for this architecture", types.unwrap_or_default()[index]);
                return Err(fields.wrong("layer_types", problem));
            }
        };
        let chunk = is_chunked.then(|| fields.size("attention_chunk_size")).transpose()?.map(|size| size as u32);
        let is_moe = match moe_layers {
            None => (index + 1).is_multiple_of(step),
            Some(listed) => listed.iter().any(|listed| listed.as_u64() == Some(index as u64)),
        };
        Ok(LayerKind { has_rope, chunk, is_moe })
    };
    (0..layers).map(kind).collect()
}

fn temperature(fields: Fields<'_>) -> Result<Option<Temperature>, CheckpointError> {
    // Older configs have a number here.
    let is_on = match fields.get("attn_temperature_tuning") {
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        _ => fields.flag("attn_temperature_tuning", true)?,
    };
    let temperature = Temperature {
        floor_scale: fields.positive("floor_scale")?.unwrap_or(8192.0) as f32,
        attn_scale: fields.positive("attn_scale")?.unwrap_or(0.1) as f32,
    };
    Ok(is_on.then_some(temperature))
}

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    let chunks: Vec<_> = config.layers.iter().map(|kind| kind.chunk).collect();
    let widest = config.intermediate_size.max(config.intermediate_size_mlp);
    let experts = ExpertsInfo { top: config.num_experts_per_tok, intermediate_size: config.intermediate_size };
    Ok(config.frame.info(config.architecture, &chunks, widest, Some(experts)))
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(decoder(&Config::parse(config)?, &text_part::weights(config, weights))?))
}
