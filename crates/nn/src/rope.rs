//! Rotary position embedding: which frequencies a config asks for (RoFormer, arXiv:2104.09864; Llama 3.1's scaling).

use std::f64::consts::TAU;

use plimsoll_ops::rope::RopeTable;

use crate::{CheckpointError, Fields};

/// The rotation a config describes.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How the frequencies are stretched to a longer context than the first training's.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency is divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Long wavelengths are stretched by `factor`, short ones left alone, those between blended (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Each frequency has its own divisor, `[head_dim / 2]`: how GGUF files store the Llama 3 scaling. Stands in a
    /// synthesized config as `"rope_type": "freq_factors"`.
    FreqFactors(Vec<f64>),
}

impl Rope {
    /// Of a model with one rotation for all layers: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
    ///
    /// # Errors
    /// A scaling that is not implemented, or malformed parameters.
    pub fn of_config(config: Fields<'_>, default_theta: f64) -> Result<Self, CheckpointError> {
        match config.nested("rope_parameters")? {
            Some(parameters) => Self::parse(Some(parameters), default_theta),
            None => {
                let theta = config.positive("rope_theta")?.unwrap_or(default_theta);
                Self::parse(config.nested("rope_scaling")?, theta)
            }
        }
    }

    /// Of one object of RoPE parameters (`rope_scaling`, or an entry of `rope_parameters`).
    ///
    /// # Errors
    /// As [`Rope::of_config`].
    pub fn parse(parameters: Option<Fields<'_>>, default_theta: f64) -> Result<Self, CheckpointError> {
        let Some(fields) = parameters else { return Ok(Self { theta: default_theta, scaling: RopeScaling::None }) };
        if fields.positive("partial_rotary_factor")?.is_some_and(|share| share != 1.0) {
            return Err(fields.wrong("partial_rotary_factor", "other than 1 is not implemented"));
        }
        let theta = fields.positive("rope_theta")?.unwrap_or(default_theta);
        let kind = match fields.text("rope_type")? {
            Some(kind) => kind,
            None => fields.text("type")?.unwrap_or("default"),
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: fields.required_positive("factor")? },
            "llama3" => Self::parse_llama3(fields)?,
            "freq_factors" => Self::parse_factors(fields)?,
            other => return Err(fields.wrong("rope_type", format!("{other:?} is not implemented"))),
        };
        Ok(Self { theta, scaling })
    }

    fn parse_llama3(fields: Fields<'_>) -> Result<RopeScaling, CheckpointError> {
        let (low, high) = (fields.required_positive("low_freq_factor")?, fields.required_positive("high_freq_factor")?);
        if high <= low {
            return Err(fields.wrong("high_freq_factor", "must be above low_freq_factor"));
        }
        Ok(RopeScaling::Llama3 {
            factor: fields.required_positive("factor")?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_context: fields.required_positive("original_max_position_embeddings")?,
        })
    }

    fn parse_factors(fields: Fields<'_>) -> Result<RopeScaling, CheckpointError> {
        let listed = fields.list("factors")?.unwrap_or_default();
        let factors: Option<Vec<f64>> = listed.iter().map(|f| f.as_f64().filter(|&f| f > 0.0)).collect();
        factors.map(RopeScaling::FreqFactors).ok_or_else(|| fields.wrong("factors", "must be numbers above 0"))
    }

    /// Radians a position, for each pair of a head's dimensions: `[head_dim / 2]`.
    ///
    /// # Errors
    /// The frequency factors are not of that length.
    pub fn inv_freq(&self, head_dim: usize) -> Result<Vec<f32>, CheckpointError> {
        let half = head_dim / 2;
        if let RopeScaling::FreqFactors(factors) = &self.scaling
            && factors.len() != half
        {
            let problem = format!("{} factors, the head dimension asks for {half}", factors.len());
            return Err(CheckpointError::config("rope_parameters.factors", problem));
        }
        let plain = |pair: usize| self.theta.powf(-((2 * pair) as f64) / head_dim as f64);
        Ok((0..half).map(|pair| self.scaling.apply(pair, plain(pair)) as f32).collect())
    }

    /// The table that [`plimsoll_ops::rope::rope`] rotates by.
    ///
    /// # Errors
    /// As [`Rope::inv_freq`].
    pub fn table(&self, head_dim: usize, max_positions: usize) -> Result<RopeTable, CheckpointError> {
        Ok(RopeTable::new(&self.inv_freq(head_dim)?, 1.0, max_positions))
    }
}

impl RopeScaling {
    fn apply(&self, pair: usize, inv_freq: f64) -> f64 {
        match self {
            RopeScaling::None => inv_freq,
            RopeScaling::Linear { factor } => inv_freq / factor,
            RopeScaling::FreqFactors(factors) => inv_freq / factors[pair],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * inv_freq / TAU; // of the circle, over the original context
                let blend = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 - blend) * inv_freq / factor + blend * inv_freq
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(config: serde_json::Value) -> Result<Rope, String> {
        Rope::of_config(Fields::new(&config).unwrap(), 10000.0).map_err(|e| e.to_string())
    }

    #[test]
    fn old_and_new_spellings_agree() {
        let scaling = json!({"type": "linear", "factor": 4.0});
        let old = parsed(json!({"rope_theta": 5e5, "rope_scaling": scaling}));
        let new = parsed(json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}}));
        assert_eq!(old, Ok(Rope { theta: 5e5, scaling: RopeScaling::Linear { factor: 4.0 } }));
        assert_eq!(old, new);
        assert_eq!(parsed(json!({})), Ok(Rope { theta: 10000.0, scaling: RopeScaling::None }));
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        let yarn = parsed(json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})).unwrap_err();
        assert!(yarn.contains("rope_scaling.rope_type") && yarn.contains("yarn"), "{yarn}");
        let partial = parsed(json!({"rope_parameters": {"partial_rotary_factor": 0.5}})).unwrap_err();
        assert!(partial.contains("rope_parameters.partial_rotary_factor"), "{partial}");
    }

    #[test]
    fn llama3_leaves_short_wavelengths_and_stretches_long_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let rope = Rope { theta: 500000.0, scaling };
        let plain = Rope { theta: 500000.0, scaling: RopeScaling::None };
        let (scaled, plain) = (rope.inv_freq(128).unwrap(), plain.inv_freq(128).unwrap());
        assert_eq!(scaled[0], plain[0]);
        assert_eq!(scaled[63], plain[63] / 8.0);
        assert!(scaled.iter().zip(&plain).any(|(s, p)| s < p && *s > p / 8.0), "some lie between");
    }

    #[test]
    fn freq_factors_must_match_the_head_dimension() {
        let rope = Rope { theta: 1e4, scaling: RopeScaling::FreqFactors(vec![1.0; 3]) };
        assert!(rope.inv_freq(8).unwrap_err().to_string().contains("3 factors"));
    }
}
