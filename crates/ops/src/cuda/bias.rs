//! What a linear layer adds to its results, in each dtype in which it is asked for.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use plimsoll_kernels::DevicePtr;

use super::address;

/// A bias in a GPU's memory: f32, as Plimsoll's kernels add it, and rounded to bf16, as cuBLASLt wants it where results
/// are bf16.
#[derive(Debug, Clone)]
pub(crate) struct Bias {
    f32: Tensor,
    bf16: Tensor,
}

impl Bias {
    /// # Errors
    /// There is not one number a row, or the GPU is out of memory.
    pub(crate) fn upload(bias: Option<Vec<f32>>, rows: usize, device: &Device) -> Result<Option<Self>> {
        let Some(bias) = bias else { return Ok(None) };
        if bias.len() != rows {
            bail!("a bias of {} numbers does not fit {rows} output features", bias.len());
        }
        let rounded: Vec<bf16> = bias.iter().map(|value| bf16::from_f32(*value)).collect();
        Ok(Some(Self { f32: Tensor::from_vec(bias, rows, device)?, bf16: Tensor::from_vec(rounded, rows, device)? }))
    }

    /// f32 `[out_features]`.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.f32
    }

    /// Of its elements as f32 or bf16.
    ///
    /// # Errors
    /// Another dtype is asked for.
    pub(crate) fn address(&self, dtype: DType) -> Result<DevicePtr> {
        let tensor = if dtype == DType::F32 { &self.f32 } else { &self.bf16 };
        address("linear", "bias", tensor, dtype)
    }
}
