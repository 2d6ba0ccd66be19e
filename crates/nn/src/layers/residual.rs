//! The residual stream between blocks.

use candle_core::{Result, Tensor};
use plimsoll_ops::norm::{add_rms_norm, rms_norm, sandwich_norm};

use super::RmsNorm;

/// The residual stream, and the output of the last block, which is added to it by the norm that follows: one pass over
/// memory instead of two.
pub struct Residual {
    /// `[tokens, hidden]`.
    stream: Tensor,
    branch: Option<Branch>,
}

/// A block's output, `[tokens, hidden]`, and the norm that it passes before it is added, in models that have one there.
/// That norm has the epsilon of the norm that follows.
struct Branch {
    output: Tensor,
    norm: Option<RmsNorm>,
}

impl Residual {
    /// The stream at its beginning: the embeddings, `[tokens, hidden]`.
    pub fn new(stream: Tensor) -> Self {
        Self { stream, branch: None }
    }

    /// Adds a block's output.
    pub fn add(&mut self, output: Tensor) {
        self.branch(Branch { output, norm: None });
    }

    /// Adds a block's output once it has passed `norm`.
    pub fn add_normed(&mut self, output: Tensor, norm: &RmsNorm) {
        self.branch(Branch { output, norm: Some(norm.clone()) });
    }

    fn branch(&mut self, branch: Branch) {
        assert!(self.branch.is_none(), "a block's output is added by the norm that follows, one at a time");
        self.branch = Some(branch);
    }

    /// The stream, with everything added so far, normalized: `[tokens, hidden]`.
    ///
    /// # Errors
    /// A device failure.
    pub fn norm(&mut self, norm: &RmsNorm) -> Result<Tensor> {
        let (normed, stream) = match self.branch.take() {
            None => return rms_norm(&self.stream, norm.weight(), norm.eps()),
            Some(Branch { output, norm: None }) => add_rms_norm(&output, &self.stream, norm.weight(), norm.eps()),
            Some(Branch { output, norm: Some(inner) }) => {
                sandwich_norm(&output, inner.weight(), &self.stream, norm.weight(), norm.eps())
            }
        }?;
        self.stream = stream;
        Ok(normed)
    }

    /// Goes on with some of the tokens alone, as `select` picks rows.
    ///
    /// # Errors
    /// What `select` gives.
    pub(super) fn select(self, select: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let branch = match self.branch {
            Some(branch) => Some(Branch { output: select(&branch.output)?, norm: branch.norm }),
            None => None,
        };
        Ok(Self { stream: select(&self.stream)?, branch })
    }
}
