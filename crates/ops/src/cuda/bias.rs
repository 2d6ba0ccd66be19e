//! What a linear layer adds to its results, in each dtype in which it is asked for.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use plimsoll_kernels::DevicePtr;

use super::address;

/// Brings a bias to a GPU's memory, f32 `[out_features]`, as Plimsoll's kernels add it.
///
/// # Errors
/// There is not one number a row, or the GPU is out of memory.
pub(crate) fn upload_bias(bias: Option<Vec<f32>>, rows: usize, device: &Device) -> Result<Option<Tensor>> {
    let Some(bias) = bias else { return Ok(None) };
    if bias.len() != rows {
        bail!("a bias of {} numbers does not fit {rows} output features", bias.len());
    }
    Tensor::from_vec(bias, rows, device).map(Some)
}

/// A bias as that, and rounded to bf16, as cuBLASLt wants it where results are bf16.
#[derive(Debug, Clone)]
pub(crate) struct Bias {
    f32: Tensor,
    bf16: Tensor,
}

impl Bias {
    /// # Errors
    /// As [`upload_bias`].
    pub(crate) fn upload(bias: Option<Vec<f32>>, rows: usize, device: &Device) -> Result<Option<Self>> {
        let Some(bias) = bias else { return Ok(None) };
        let bf16 = rounded(&bias, device)?;
        Ok(upload_bias(Some(bias), rows, device)?.map(|f32| Self { f32, bf16 }))
    }

    /// Of one that [`upload_bias`] gave.
    ///
    /// # Errors
    /// The GPU fails, or is out of memory.
    pub(crate) fn of(f32: &Tensor) -> Result<Self> {
        Ok(Self { bf16: rounded(&f32.to_vec1()?, f32.device())?, f32: f32.clone() })
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

fn rounded(bias: &[f32], device: &Device) -> Result<Tensor> {
    let rounded: Vec<bf16> = bias.iter().map(|value| bf16::from_f32(*value)).collect();
    Tensor::from_vec(rounded, bias.len(), device)
}
