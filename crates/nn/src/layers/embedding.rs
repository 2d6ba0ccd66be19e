//! From token ids to the residual stream.

use candle_core::Result;
use plimsoll_ops::linear::Linear;

use super::Residual;
use crate::ForwardBatch;

/// The token embedding: a row of the table a token.
pub struct Embedding {
    /// `[vocab, hidden]`.
    table: Linear,
    scale: f32,
}

impl Embedding {
    /// Rows as they are.
    pub fn new(table: Linear) -> Self {
        Self { table, scale: 1.0 }
    }

    /// Rows times `scale`.
    pub fn scaled(table: Linear, scale: f32) -> Self {
        Self { table, scale }
    }

    /// The stream at its beginning, `[tokens, hidden]`.
    ///
    /// # Errors
    /// A token id outside the vocabulary, or a device failure.
    pub fn forward(&self, batch: &ForwardBatch) -> Result<Residual> {
        Ok(Residual::new(self.table.embed(batch.input_ids(), self.scale)?))
    }
}
