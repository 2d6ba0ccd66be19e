//! Picking rows: the tokens whose logits are wanted.

use candle_core::{Result, Tensor};

use crate::indices::Indices;

/// The rows `rows` of `x`, `[n, h]`, in their order: `[rows, h]`.
///
/// # Errors
/// `x` does not have a row.
pub fn select_rows(x: &Tensor, rows: Indices<'_>) -> Result<Tensor> {
    x.index_select(&Tensor::new(rows.host, x.device())?, 0)
}
