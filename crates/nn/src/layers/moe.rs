//! The feed-forward layer that is a mixture of experts.

use candle_core::{Result, Tensor};
use plimsoll_ops::linear::Linear;
use plimsoll_ops::moe::{Experts, Weighting, route};

/// A router and its experts (arXiv:1701.06538): each token passes those few that the router scores highest.
pub struct Moe {
    /// One output an expert.
    router: Linear,
    experts: Experts,
    /// Experts a token.
    top: usize,
    weighting: Weighting,
}

impl Moe {
    /// `router` has as many outputs as there are experts, `top` or more.
    pub fn new(router: Linear, experts: Experts, top: usize, weighting: Weighting) -> Self {
        Self { router, experts, top, weighting }
    }

    /// `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// A device failure.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let routes = route(&self.router.forward(x)?, self.top, self.weighting)?;
        self.experts.forward(x, &routes)
    }
}
