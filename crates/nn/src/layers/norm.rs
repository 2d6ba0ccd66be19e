//! RMSNorm as a layer: weight and epsilon together.

use candle_core::{Result, Tensor};
use plimsoll_ops::norm::{add_rms_norm, rms_norm};

/// Root-mean-square normalization with a weight a feature (arXiv:1910.07467).
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `weight`: `[features]`, f32, multiplied with as it is.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// Normalizes each row of `x`, `[rows, features]`.
    ///
    /// # Errors
    /// A device failure.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }

    /// Adds a branch back to its residual stream and normalizes the sum, both `[rows, features]`: returns the
    /// normalized sum and the sum.
    ///
    /// # Errors
    /// A device failure.
    pub fn add_forward(&self, branch: &Tensor, residual: &Tensor) -> Result<(Tensor, Tensor)> {
        add_rms_norm(branch, residual, &self.weight, self.eps)
    }
}
