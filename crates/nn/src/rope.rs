//! Rotary position embedding: which frequencies a config asks for (RoFormer, arXiv:2104.09864; Llama 3.1's scaling;
//! YaRN, arXiv:2309.00071).

mod paired;
mod yarn;

use std::f64::consts::TAU;

use plimsoll_ops::rope::RopeTable;

pub(crate) use self::paired::{are_paired, unpaired_rows};
pub use self::yarn::Yarn;
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
    Yarn(Yarn),
}

impl Rope {
    /// Of a model with one rotation for all layers: `rope_parameters`, or the older `rope_theta` and `rope_scaling`.
    ///
    /// # Errors
    /// A scaling that is not implemented, or malformed parameters.
    pub fn of_config(config: Fields<'_>, default_theta: f64) -> Result<Self, CheckpointError> {
        let theta = config.positive("rope_theta")?.unwrap_or(default_theta);
        let Some(parameters) = config.nested("rope_parameters")? else {
            return Self::parse(config.nested("rope_scaling")?, theta);
        };
        let rope = Self::parse(Some(parameters), theta)?;
        rope.check_older(config)?;
        Ok(rope)
    }

    /// Refuses a config that has `rope_scaling` beside the `rope_parameters` that this is of, and says something else there.
    ///
    /// # Errors
    /// It does.
    pub fn check_older(&self, config: Fields<'_>) -> Result<(), CheckpointError> {
        match config.nested("rope_scaling")? {
            Some(scaling) if Self::parse(Some(scaling), self.theta)? != *self => {
                Err(config.wrong("rope_scaling", "differs from rope_parameters: leave one of them out"))
            }
            _ => Ok(()),
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
            "yarn" if theta <= 1.0 => return Err(fields.wrong("rope_theta", "must be above 1 for YaRN")),
            "yarn" => RopeScaling::Yarn(Yarn::parse(fields)?),
            other => return Err(fields.wrong("rope_type", format!("{other:?} is not implemented"))),
        };
        Ok(Self { theta, scaling })
    }

    fn parse_llama3(fields: Fields<'_>) -> Result<RopeScaling, CheckpointError> {
        let (low, high) = (fields.required_positive("low_freq_factor")?, fields.required_positive("high_freq_factor")?);
        if high < low {
            return Err(fields.wrong("high_freq_factor", "must not be below low_freq_factor"));
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
        Ok((0..half).map(|pair| self.frequency(pair, head_dim) as f32).collect())
    }

    /// The table that [`plimsoll_ops::rope::rope`] rotates by.
    ///
    /// # Errors
    /// As [`Rope::inv_freq`].
    pub fn table(&self, head_dim: usize, max_positions: usize) -> Result<RopeTable, CheckpointError> {
        let attention_factor = match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
            _ => 1.0,
        };
        Ok(RopeTable::new(&self.inv_freq(head_dim)?, attention_factor, max_positions))
    }

    /// Radians a position of one pair.
    fn frequency(&self, pair: usize, head_dim: usize) -> f64 {
        let plain = self.theta.powf(-((2 * pair) as f64) / head_dim as f64);
        match &self.scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::FreqFactors(factors) => plain / factors[pair],
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let turns = original_context * plain / TAU; // of the circle, over the original context
                let blend = match high_freq_factor - low_freq_factor {
                    0.0 => f64::from(u8::from(turns >= *high_freq_factor)), // Llama 4 blends none
                    between => ((turns - low_freq_factor) / between).clamp(0.0, 1.0),
                };
                (1.0 - blend) * plain / factor + blend * plain
            }
            RopeScaling::Yarn(yarn) => {
                let stretched = yarn.stretched(pair, self.theta, head_dim);
                stretched * plain / yarn.factor + (1.0 - stretched) * plain
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
    fn an_older_spelling_beside_the_newer_one_counts_or_is_refused() {
        let plain = json!({"rope_type": "default"});
        let beside = parsed(json!({"rope_theta": 1e6, "rope_parameters": plain}));
        assert_eq!(beside, Ok(Rope { theta: 1e6, scaling: RopeScaling::None }));
        let inside = parsed(json!({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 5e5}, "rope_scaling": plain}));
        assert_eq!(inside, Ok(Rope { theta: 5e5, scaling: RopeScaling::None }));
        let scaling = json!({"rope_type": "linear", "factor": 4.0});
        assert!(parsed(json!({"rope_parameters": scaling, "rope_scaling": scaling})).is_ok());
        let error = parsed(json!({"rope_parameters": plain, "rope_scaling": scaling})).unwrap_err();
        assert!(error.contains("`rope_scaling`") && error.contains("rope_parameters"), "{error}");
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        let kind = parsed(json!({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}})).unwrap_err();
        assert!(kind.contains("rope_scaling.rope_type") && kind.contains("longrope"), "{kind}");
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
    fn llama3_without_a_range_between_blends_nothing() {
        let parameters = |high: f64| {
            let scaling = json!({"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0,
                "high_freq_factor": high, "original_max_position_embeddings": 8192});
            parsed(json!({"rope_theta": 5e5, "rope_scaling": scaling}))
        };
        let plain = Rope { theta: 5e5, scaling: RopeScaling::None }.inv_freq(128).unwrap();
        let scaled = parameters(1.0).unwrap().inv_freq(128).unwrap();
        for (scaled, plain) in scaled.iter().zip(&plain) {
            let turns = 8192.0 * f64::from(*plain) / TAU;
            assert_eq!(*scaled, if turns < 1.0 { plain / 16.0 } else { *plain });
        }
        assert!(parameters(0.5).unwrap_err().contains("high_freq_factor"));
    }

    /// transformers' frequencies and factors for many parameters of YaRN.
    #[test]
    fn yarn_is_as_its_reference_computes_it() {
        let golden = include_str!("../../../tests/golden/yarn.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let cases = golden.as_array().unwrap();
        assert!(cases.len() >= 6);
        for case in cases {
            let rope = parsed(json!({"rope_parameters": case["rope_parameters"]})).unwrap();
            let RopeScaling::Yarn(yarn) = &rope.scaling else { panic!("{rope:?}") };
            let close = |found: f64, expected: &serde_json::Value| {
                let expected = expected.as_f64().unwrap();
                assert!((found - expected).abs() <= 2e-6 * expected, "{case}: {found}, expected {expected}");
            };
            close(yarn.attention_factor, &case["attention_factor"]);
            let expected = case["inv_freq"].as_array().unwrap();
            let found = rope.inv_freq(2 * expected.len()).unwrap();
            found.iter().zip(expected).for_each(|(&found, expected)| close(f64::from(found), expected));
        }
    }

    #[test]
    fn yarn_s_parameters_must_be_there_and_sane() {
        let yarn = |extra: serde_json::Value| {
            let mut scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
            scaling.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            parsed(json!({"rope_theta": 1e6, "rope_scaling": scaling}))
        };
        assert!(yarn(json!({})).is_ok());
        for (extra, named) in [
            (json!({"factor": null}), "factor"),
            (json!({"original_max_position_embeddings": null}), "original_max_position_embeddings"),
            (json!({"beta_fast": 0}), "beta_fast"),
            (json!({"truncate": "no"}), "truncate"),
            (json!({"rope_theta": 1}), "rope_theta"),
        ] {
            let error = yarn(extra).unwrap_err();
            assert!(error.contains(&format!("rope_scaling.{named}")), "{error}");
        }
    }

    #[test]
    fn freq_factors_must_match_the_head_dimension() {
        let rope = Rope { theta: 1e4, scaling: RopeScaling::FreqFactors(vec![1.0; 3]) };
        assert!(rope.inv_freq(8).unwrap_err().to_string().contains("3 factors"));
    }
}
