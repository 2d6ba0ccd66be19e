//! The gated feed-forward layer.

use candle_core::{Result, Tensor};
use plimsoll_ops::linear::Linear;

use crate::{CheckpointError, Weights};

/// A gated feed-forward layer (arXiv:2002.05202): `down(act(gate(x)) * up(x))`.
pub struct Mlp {
    gate_up: Linear,
    down: Linear,
    activation: fn(&Tensor) -> Result<Tensor>,
}

impl Mlp {
    /// `activation` takes `[tokens, 2 * intermediate]`, gate then up, to their gated product.
    ///
    /// # Errors
    /// Missing or misshapen tensors.
    pub fn new(
        hidden: usize,
        intermediate: usize,
        activation: fn(&Tensor) -> Result<Tensor>,
        weights: &Weights<'_>,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(Self {
            gate_up: weights.linear(&[("gate_proj", intermediate), ("up_proj", intermediate)], hidden)?,
            down: weights.linear(&[("down_proj", hidden)], intermediate)?,
            activation,
        })
    }

    /// `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// A device failure.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&(self.activation)(&self.gate_up.forward(x)?)?)
    }
}
