//! From the residual stream to logits.

use candle_core::{Result, Tensor};
use plimsoll_ops::linear::Linear;

use super::RmsNorm;

/// The final norm and the projection to the vocabulary, of the wanted rows alone.
pub struct Head {
    norm: RmsNorm,
    projection: Linear,
}

impl Head {
    pub fn new(norm: RmsNorm, projection: Linear) -> Self {
        Self { norm, projection }
    }

    /// Logits `[rows, vocab]` of the tokens `rows` of `x`, `[tokens, hidden]`.
    ///
    /// # Errors
    /// A row that `x` does not have, or a device failure.
    pub fn forward(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        if rows.is_empty() {
            return Tensor::zeros((0, self.projection.out_features()), x.dtype(), x.device());
        }
        let rows = Tensor::new(rows, x.device())?;
        self.projection.forward(&self.norm.forward(&x.index_select(&rows, 0)?)?)
    }
}
