//! Qwen3, mixtures of experts (arXiv:2505.09388): Qwen3's attention, and in place of most layers' feed-forward layer 128
//! small ones, of which each token passes eight.

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
use serde_json::Value;

use crate::decoder::{Decoder, DecoderLayer, Frame, experts_per_token};
use crate::qwen3::{HEAD_DIM, refuse_windows};
use crate::text_part::TextWeights;

struct Config {
    frame: Frame,
    /// Of a layer without experts.
    intermediate_size: usize,
    /// Of one expert.
    moe_intermediate_size: usize,
    /// For each layer, whether it is a mixture of experts.
    is_sparse: Vec<bool>,
    num_experts: usize,
    num_experts_per_tok: usize,
    weighting: Weighting,
    rope: Rope,
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
        let shape = config.frame.attention;
        let params =
            AttentionParams { scale: config.frame.attention_scale(), window: None, chunk: None, softcap: None };
        let inside = weights.pp("self_attn");
        let head_norm = |name| Ok(RmsNorm::new(inside.norm(name, shape.head_dim)?, config.frame.rms_norm_eps));
        let attention = Attention::new(index, shape, params, rope, &inside)?;
        let mlp = weights.pp("mlp");
        Ok(Self {
            input_norm: config.frame.norm(weights, "input_layernorm")?,
            attention: attention.with_qk_norm(head_norm("q_norm")?, head_norm("k_norm")?),
            post_attention_norm: config.frame.norm(weights, "post_attention_layernorm")?,
            feed_forward: match config.is_sparse[index] {
                true => FeedForward::Sparse(config.moe(&mlp)?),
                false => FeedForward::Dense(Mlp::new(shape.hidden, config.intermediate_size, silu_mul, &mlp)?),
            },
        })
    }
}

fn decoder(config: &Config, weights: &Weights<'_>) -> Result<Decoder<Layer>, CheckpointError> {
    let rope = config.rope.table(config.frame.attention.head_dim, config.frame.max_position_embeddings)?;
    let layer = |index, weights: &Weights<'_>| Layer::new(config, index, rope.clone(), weights);
    Decoder::load(&config.frame, &TextWeights::of(weights), config.is_sparse.len(), layer)
}

impl Config {
    fn parse(config: &Value) -> Result<Self, CheckpointError> {
        let fields = Fields::new(config)?;
        fields.refuse(&["attention_bias", "use_sliding_window"])?;
        refuse_windows(fields)?;
        fields.only("hidden_act", "silu")?;
        let num_experts = match fields.optional_count("num_experts")? {
            Some(experts) => experts,
            None => fields.count("num_local_experts")?,
        };
        Ok(Self {
            frame: Frame::parse(fields, Some(HEAD_DIM), 1e-6)?,
            intermediate_size: fields.size("intermediate_size")?,
            moe_intermediate_size: fields.size("moe_intermediate_size")?,
            is_sparse: sparse_layers(fields)?,
            num_experts,
            num_experts_per_tok: experts_per_token(fields, num_experts)?,
            weighting: match fields.flag("norm_topk_prob", false)? {
                true => Weighting::AmongChosen,
                false => Weighting::AmongAll,
            },
            rope: Rope::of_config(fields, 10000.0)?,
        })
    }

    fn moe(&self, weights: &Weights<'_>) -> Result<Moe, CheckpointError> {
        let hidden = self.frame.attention.hidden;
        let router = weights.router("gate", [self.num_experts, hidden], false)?;
        let shape = ExpertsShape {
            experts: self.num_experts,
            hidden,
            intermediate: self.moe_intermediate_size,
            has_biases: false,
            alternating: false,
        };
        let experts = weights.pp("experts").experts(shape, Activation::SiluMul)?;
        Ok(Moe::new(router, experts, self.num_experts_per_tok, self.weighting))
    }
}

/// Every `decoder_sparse_step`th layer is a mixture of experts, unless `mlp_only_layers` lists it.
fn sparse_layers(fields: Fields<'_>) -> Result<Vec<bool>, CheckpointError> {
    let layers = fields.count("num_hidden_layers")?;
    let step = fields.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let mut is_sparse: Vec<bool> = (1..=layers).map(|nth| nth.is_multiple_of(step)).collect();
    for index in fields.list("mlp_only_layers")?.unwrap_or_default() {
        let listed = index.as_u64().and_then(|index| is_sparse.get_mut(index as usize));
        let Some(is_sparse) = listed else {
            return Err(fields.wrong("mlp_only_layers", format!("{index} is none of {layers} layers")));
        };
        *is_sparse = false;
    }
    Ok(is_sparse)
}

pub(crate) fn info(config: &Value) -> Result<ModelInfo, CheckpointError> {
    let config = Config::parse(config)?;
    let widest = config.intermediate_size.max(config.moe_intermediate_size);
    let experts = ExpertsInfo { top: config.num_experts_per_tok, intermediate_size: config.moe_intermediate_size };
    Ok(config.frame.info("Qwen3MoeForCausalLM", &vec![None; config.is_sparse.len()], widest, Some(experts)))
}

pub(crate) fn load(config: &Value, weights: &Weights<'_>) -> Result<Box<dyn Model>, CheckpointError> {
    Ok(Box::new(decoder(&Config::parse(config)?, weights)?))
}
