//! What all architectures have in common: a token embedding, layers that add to the residual stream, a norm, a head. What
//! a layer is made of, each file says; this must never know.

use candle_core::{Result, Tensor};
use plimsoll_nn::{CheckpointError, Embedding, ForwardBatch, Head, KvCache, Model, Residual, RmsNorm, Weights};

use crate::text_part::TextWeights;

/// One layer of a model.
pub(crate) trait DecoderLayer: Send {
    /// Adds to the residual stream.
    fn forward(&self, x: &mut Residual, batch: &ForwardBatch, cache: &KvCache) -> Result<()>;
}

/// A model of such layers.
pub(crate) struct Decoder<L> {
    pub(crate) embed_tokens: Embedding,
    pub(crate) layers: Vec<L>,
    pub(crate) head: Head,
}

/// What a decoder is, but for its layers.
pub(crate) struct Frame {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) rms_norm_eps: f64,
    pub(crate) tie_word_embeddings: bool,
}

impl<L: DecoderLayer> Decoder<L> {
    /// Loads the embedding, so many layers by `layer`, which is given a layer's index and its weights, and the head.
    pub(crate) fn load(
        frame: &Frame,
        TextWeights { inner, outer }: &TextWeights<'_>,
        layers: usize,
        layer: impl Fn(usize, &Weights<'_>) -> std::result::Result<L, CheckpointError>,
    ) -> std::result::Result<Self, CheckpointError> {
        let embed_tokens = inner.embedding("embed_tokens", frame.vocab_size, frame.hidden_size)?;
        let layers = (0..layers)
            .map(|index| layer(index, &inner.pp("layers").pp(index)))
            .collect::<std::result::Result<_, _>>()?;
        let norm = RmsNorm::new(inner.norm("norm", frame.hidden_size)?, frame.rms_norm_eps);
        let table = [frame.vocab_size, frame.hidden_size];
        let head = Head::new(norm, &embed_tokens, frame.tie_word_embeddings, table, outer)?;
        Ok(Self { embed_tokens: Embedding::new(embed_tokens), layers, head })
    }
}

impl<L: DecoderLayer> Model for Decoder<L> {
    fn forward(&self, batch: &ForwardBatch, cache: &KvCache) -> Result<Tensor> {
        let mut x = self.embed_tokens.forward(batch)?;
        for layer in &self.layers {
            layer.forward(&mut x, batch, cache)?;
        }
        self.head.forward(x, batch)
    }
}
