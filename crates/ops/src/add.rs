//! The plain sum of two branches of a layer.

use candle_core::{Result, Tensor};

/// `x + y`: f32 `[tokens, hidden]` each (on a GPU bf16, in the memory of `x`: do not read it afterwards).
///
/// # Errors
/// Other shapes or dtypes.
pub fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::add(x, y);
    }
    x + y
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Result, Tensor, bail};
    use plimsoll_kernels::activation::Add;

    use crate::cuda::{Cuda, address, launch_error};

    pub(super) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
        if x.shape() != y.shape() {
            bail!("add: {:?} and {:?}", x.shape(), y.shape());
        }
        let at = address("add", "x", x, DType::BF16)?;
        let op = Add { out: at, x: at, y: address("add", "y", y, DType::BF16)?, count: x.elem_count() as u64 };
        op.run(Cuda::of(x.device())?.queue()).map_err(launch_error)?;
        Ok(x.clone())
    }
}
