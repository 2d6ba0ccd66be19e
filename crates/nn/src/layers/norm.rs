//! RMSNorm as a layer: weight and epsilon together.

use candle_core::Tensor;

/// Root-mean-square normalization with a weight a feature (arXiv:1910.07467). Cheap to clone.
#[derive(Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f32,
}

impl RmsNorm {
    /// `weight`: `[features]`, f32, multiplied with as it is.
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps: eps as f32 }
    }

    /// f32 `[features]`.
    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn eps(&self) -> f32 {
        self.eps
    }
}
