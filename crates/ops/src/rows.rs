//! Picking rows: the tokens whose logits are wanted.

use candle_core::{Result, Tensor};

use crate::indices::Indices;

/// The rows `rows` of `x`, `[n, h]`, in their order: `[rows, h]`. On a GPU `x` is bf16, and a row of `u32::MAX` is left
/// as it happens to be.
///
/// # Errors
/// `x` does not have a row.
pub fn select_rows(x: &Tensor, rows: Indices<'_>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if let Some(rows) = rows.device {
        return cuda::select_rows(x, rows);
    }
    x.index_select(&Tensor::new(rows.host, x.device())?, 0)
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Result, Tensor};
    use plimsoll_kernels::gather_rows::GatherRows;

    use crate::cuda::{Cuda, address, launch_error};

    pub(super) fn select_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        let ((x_rows, hidden), count) = (x.dims2()?, rows.dims1()?);
        let cuda = Cuda::of(x.device())?;
        let out = cuda.empty((count, hidden), DType::BF16)?;
        let op = GatherRows {
            out: address("select_rows", "out", &out, DType::BF16)?,
            x: address("select_rows", "x", x, DType::BF16)?,
            rows: address("select_rows", "rows", rows, DType::U32)?,
            count: count as u32,
            x_rows: x_rows as u32,
            hidden: hidden as u32,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(out)
    }
}
