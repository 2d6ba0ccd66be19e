//! YaRN (arXiv:2309.00071): which pairs of a head are stretched to the longer context, and by how much.

use std::f64::consts::TAU;

use crate::{CheckpointError, Fields};

/// Pairs that turn at least `beta_fast` times over the original context keep their frequency, those that turn at most
/// `beta_slow` times are slowed down by `factor`, those between are blended; and all that is rotated grows by
/// `attention_factor`.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    /// Tokens.
    pub original_context: f64,
    pub attention_factor: f64,
    /// The blend begins and ends at whole pairs.
    pub truncate: bool,
}

impl Yarn {
    pub(super) fn parse(fields: Fields<'_>) -> Result<Self, CheckpointError> {
        let factor = fields.required_positive("factor")?;
        let attention_factor = match fields.positive("attention_factor")? {
            Some(stated) => stated,
            None => match (fields.positive("mscale")?, fields.positive("mscale_all_dim")?) {
                (Some(mscale), Some(all)) => inferred(factor, mscale) / inferred(factor, all),
                _ => inferred(factor, 1.0),
            },
        };
        Ok(Self {
            factor,
            beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
            original_context: fields.required_positive("original_max_position_embeddings")?,
            attention_factor,
            truncate: fields.flag("truncate", true)?,
        })
    }

    /// How far `pair` is towards the stretched frequency: 0 is the plain one, 1 the stretched. `theta` is above 1.
    pub(super) fn stretched(&self, pair: usize, theta: f64, head_dim: usize) -> f64 {
        let (mut first, mut last) =
            (self.pair_turning(self.beta_fast, theta, head_dim), self.pair_turning(self.beta_slow, theta, head_dim));
        if self.truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        first = first.max(0.0);
        last = last.min((head_dim - 1) as f64);
        if first == last {
            last += 0.001; // a step, as steep as the reference's
        }
        ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0)
    }

    /// The pair, in fractions, that turns `turns` times over the original context.
    fn pair_turning(&self, turns: f64, theta: f64, head_dim: usize) -> f64 {
        head_dim as f64 * (self.original_context / (turns * TAU)).ln() / (2.0 * theta.ln())
    }
}

/// The growth that the paper suggests, its logarithm weighted by `mscale`.
fn inferred(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}
