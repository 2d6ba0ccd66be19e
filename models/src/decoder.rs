//! What all architectures have in common: a token embedding, layers that add to the residual stream, a norm, a head, and the
//! sizes of these. What a layer is made of, each file says; this must never know.

use candle_core::Tensor;
use plimsoll_nn::{
    AttentionShape, CheckpointError, Embedding, ExpertsInfo, Fields, ForwardBatch, Head, KvCache, LayerInfo, Model,
    ModelInfo, Residual, RmsNorm, Weights,
};

use crate::text_part::TextWeights;

/// One layer of a model.
pub(crate) trait DecoderLayer: Send {
    /// Adds to the residual stream.
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<()>;
}

/// A model of such layers.
pub(crate) struct Decoder<L> {
    pub(crate) embed_tokens: Embedding,
    pub(crate) layers: Vec<L>,
    pub(crate) head: Head,
}

/// What a decoder is, but for what its layers are made of.
pub(crate) struct Frame {
    pub(crate) vocab_size: usize,
    pub(crate) attention: AttentionShape,
    pub(crate) rms_norm_eps: f64,
    pub(crate) max_position_embeddings: usize,
    pub(crate) tie_word_embeddings: bool,
}

impl Frame {
    /// As most configs spell it. `head_dim` and `rms_norm_eps` are what a config means that does not say; by default, heads
    /// share the hidden size.
    ///
    /// # Errors
    /// A field is missing, or not what it should be.
    pub(crate) fn parse(
        fields: Fields<'_>,
        head_dim: Option<usize>,
        rms_norm_eps: f64,
    ) -> Result<Self, CheckpointError> {
        let (hidden, heads) = (fields.size("hidden_size")?, fields.size("num_attention_heads")?);
        let attention = AttentionShape {
            hidden,
            heads,
            kv_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(heads),
            head_dim: fields.optional_size("head_dim")?.or(head_dim).unwrap_or(hidden / heads),
        };
        attention.check()?;
        Ok(Self {
            vocab_size: fields.size("vocab_size")?,
            attention,
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(rms_norm_eps),
            max_position_embeddings: fields.context_length("max_position_embeddings")?,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
        })
    }

    /// A norm of the residual stream.
    ///
    /// # Errors
    /// Its weights are missing, or not as many as the stream is wide.
    pub(crate) fn norm(&self, weights: &Weights<'_>, name: &str) -> Result<RmsNorm, CheckpointError> {
        Ok(RmsNorm::new(weights.norm(name, self.attention.hidden)?, self.rms_norm_eps))
    }

    /// What attention scores are multiplied with: one over the square root of a head's dimension.
    pub(crate) fn attention_scale(&self) -> f32 {
        (self.attention.head_dim as f32).powf(-0.5)
    }

    /// What is known of a model with layers of these attention windows, of which the widest inner layer is so wide.
    pub(crate) fn info(
        &self,
        architecture: &str,
        windows: &[Option<u32>],
        intermediate_size: usize,
        experts: Option<ExpertsInfo>,
    ) -> ModelInfo {
        let AttentionShape { hidden, heads, kv_heads, head_dim } = self.attention;
        let (groups, of_layer) = ModelInfo::group_by_window(windows);
        ModelInfo {
            architecture: architecture.into(),
            layers: of_layer.into_iter().map(|group| LayerInfo { kv_heads, head_dim, group }).collect(),
            groups,
            vocab_size: self.vocab_size,
            max_position_embeddings: self.max_position_embeddings,
            hidden_size: hidden,
            intermediate_size,
            num_attention_heads: heads,
            experts,
        }
    }
}

/// Of `experts` experts, how many each token passes: `num_experts_per_tok`.
///
/// # Errors
/// It is missing, or more than there are.
pub(crate) fn experts_per_token(fields: Fields<'_>, experts: usize) -> Result<usize, CheckpointError> {
    match fields.size("num_experts_per_tok")? {
        top if top <= experts => Ok(top),
        _ => Err(fields.wrong("num_experts_per_tok", format!("is more than the {experts} experts there are"))),
    }
}

impl<L: DecoderLayer> Decoder<L> {
    /// Loads the embedding, so many layers by `layer`, which is given a layer's index and its weights, and the head.
    pub(crate) fn load(
        frame: &Frame,
        TextWeights { inner, outer }: &TextWeights<'_>,
        layers: usize,
        layer: impl Fn(usize, &Weights<'_>) -> Result<L, CheckpointError>,
    ) -> Result<Self, CheckpointError> {
        let hidden = frame.attention.hidden;
        let embed_tokens = inner.embedding("embed_tokens", frame.vocab_size, hidden)?;
        let layers = (0..layers).map(|index| layer(index, &inner.pp("layers").pp(index))).collect::<Result<_, _>>()?;
        let norm = frame.norm(inner, "norm")?;
        let table = [frame.vocab_size, hidden];
        let head = Head::new(norm, &embed_tokens, frame.tie_word_embeddings, table, outer)?;
        Ok(Self { embed_tokens: Embedding::new(embed_tokens), layers, head })
    }
}

impl<L: DecoderLayer> Model for Decoder<L> {
    fn forward(&self, batch: &ForwardBatch, cache: &KvCache) -> candle_core::Result<Tensor> {
        let mut x = self.embed_tokens.forward(batch)?;
        for layer in &self.layers {
            layer.forward(&mut x, batch, cache)?;
        }
        self.head.forward(x, batch)
    }
}
