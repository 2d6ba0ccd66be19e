//! The feed-forward layer that is a mixture of experts.

use candle_core::{Result, Tensor};
use plimsoll_ops::linear::Linear;
use plimsoll_ops::moe::{Experts, Routes, Weighting, route_by};

use super::Mlp;
use crate::ForwardBatch;

/// A router and its experts (arXiv:1701.06538): each token passes those few that the router scores highest, and a shared
/// one where there is one.
pub struct Moe {
    /// One output an expert.
    router: Linear,
    experts: Experts,
    /// Experts a token.
    top: usize,
    weighting: Weighting,
    /// Of every token.
    shared: Option<Mlp>,
}

impl Moe {
    /// `router` has as many outputs as there are experts, `top` or more.
    pub fn new(router: Linear, experts: Experts, top: usize, weighting: Weighting) -> Self {
        Self { router, experts, top, weighting, shared: None }
    }

    /// Adds what `shared` makes of every token.
    pub fn with_shared(self, shared: Mlp) -> Self {
        Self { shared: Some(shared), ..self }
    }

    /// `[tokens, hidden]`, those of `batch`, to the same.
    ///
    /// # Errors
    /// A device failure.
    pub fn forward(&self, x: &Tensor, batch: &ForwardBatch) -> Result<Tensor> {
        let beside = self.shared.as_ref().map(|shared| shared.forward(x)).transpose()?;
        self.experts.forward(x, &self.routes(x, batch)?, beside.as_ref())
    }

    /// Which experts the tokens `x`, `[tokens, hidden]`, go to.
    ///
    /// # Errors
    /// A device failure.
    pub fn routes(&self, x: &Tensor, batch: &ForwardBatch) -> Result<Routes> {
        route_by(&self.router, x, batch.num_tokens_on_device(), self.top, self.weighting)
    }
}
