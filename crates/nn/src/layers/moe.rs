//! The feed-forward layer that is a mixture of experts.

use candle_core::{Result, Tensor};
use plimsoll_ops::add::add;
use plimsoll_ops::linear::Linear;
use plimsoll_ops::moe::{Experts, Routes, Weighting, route_by};

use super::Mlp;

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

    /// `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// A device failure.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let routed = self.experts.forward(x, &self.routes(x)?)?;
        match &self.shared {
            Some(shared) => add(&shared.forward(x)?, &routed),
            None => Ok(routed),
        }
    }

    /// Which experts the tokens `x`, `[tokens, hidden]`, go to.
    ///
    /// # Errors
    /// A device failure.
    pub fn routes(&self, x: &Tensor) -> Result<Routes> {
        route_by(&self.router, x, self.top, self.weighting)
    }
}
