//! From the residual stream to logits.

use candle_core::{Result, Tensor};
use plimsoll_ops::linear::Linear;
use plimsoll_ops::rows::select_rows;

use super::{Residual, RmsNorm};
use crate::{CheckpointError, ForwardBatch, Weights};

/// The final norm and the projection to the vocabulary, of the wanted tokens alone.
pub struct Head {
    norm: RmsNorm,
    projection: Linear,
}

impl Head {
    /// With `lm_head` as the projection, or, where it is `tied`, the token embedding `embed_tokens`, `[vocab, hidden]`.
    ///
    /// # Errors
    /// The tensor is missing or misshapen.
    pub fn new(
        norm: RmsNorm,
        embed_tokens: &Linear,
        tied: bool,
        [vocab, hidden]: [usize; 2],
        weights: &Weights<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        let projection = if tied {
            weights.ignore("lm_head");
            embed_tokens.clone()
        } else {
            weights.linear(&[("lm_head", vocab)], hidden)?
        };
        Ok(Self { norm, projection })
    }

    /// Logits of the tokens `batch.logit_rows` of `x`: f32 `[logit_rows, vocab]`.
    ///
    /// # Errors
    /// A row that `x` does not have, or a device failure.
    pub fn forward(&self, x: Residual, batch: &ForwardBatch) -> Result<Tensor> {
        let mut wanted = x.select(|rows| select_rows(rows, batch.logit_rows()))?;
        self.projection.logits(&wanted.norm(&self.norm)?, batch.logits())
    }
}
