//! Lengths in tokens: one, or drawn from a distribution.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// No prompt or reply is longer.
pub(crate) const LONGEST: u32 = 10_000_000;

/// The texts of all prompts together must fit into memory.
pub(crate) const MOST_INPUT_TOKENS: u64 = 50_000_000;

/// A distribution of lengths. Written `512`, `100-600`, `normal:512:128` (mean and standard deviation) or
/// `128x3,512x1` (each as often as its weight says).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub enum Lengths {
    Fixed(u32),
    /// Each from the first to the second equally likely.
    Uniform(u32, u32),
    /// Values below 1 are 1.
    Normal {
        mean: f64,
        deviation: f64,
    },
    /// Lengths with their weights.
    Given(Vec<(u32, f64)>),
}

impl Lengths {
    pub(crate) fn draw(&self, rng: &mut StdRng) -> u32 {
        match self {
            Self::Fixed(length) => *length,
            Self::Uniform(least, most) => rng.random_range(*least..=*most),
            Self::Normal { mean, deviation } => {
                (mean + deviation * standard_normal(rng)).round().clamp(1.0, f64::from(LONGEST)) as u32
            }
            Self::Given(weights) => {
                let mut left = rng.random::<f64>() * weights.iter().map(|(_, weight)| weight).sum::<f64>();
                let found = weights.iter().find(|(_, weight)| {
                    left -= weight;
                    left < 0.0
                });
                found.or(weights.last()).map_or(1, |(length, _)| *length)
            }
        }
    }
}

/// A number of the normal distribution around 0 with deviation 1, by Box and Muller.
pub(crate) fn standard_normal(rng: &mut StdRng) -> f64 {
    let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is no length; give tokens (512), a range (100-600), normal:MEAN:DEVIATION, or lengths with \
                 weights (128x3,512x1), each from 1 to {LONGEST}"
            )
        };
        let length = |text: &str| text.trim().parse().ok().filter(|length| (1..=LONGEST).contains(length));
        let positive = |text: &str| text.trim().parse::<f64>().ok().filter(|v| v.is_finite() && *v > 0.0);
        if let Some(parameters) = text.strip_prefix("normal:") {
            let (mean, deviation) = parameters.split_once(':').ok_or_else(wrong)?;
            let (mean, deviation) = positive(mean).zip(positive(deviation)).ok_or_else(wrong)?;
            return if mean <= f64::from(LONGEST) { Ok(Self::Normal { mean, deviation }) } else { Err(wrong()) };
        }
        if text.contains('x') {
            let weight = |part: &str| {
                let (of, weight) = part.split_once('x')?;
                length(of).zip(positive(weight))
            };
            return text.split(',').map(weight).collect::<Option<_>>().map(Self::Given).ok_or_else(wrong);
        }
        if let Some((least, most)) = text.split_once('-') {
            let (least, most) = length(least).zip(length(most)).ok_or_else(wrong)?;
            return if least <= most { Ok(Self::Uniform(least, most)) } else { Err(wrong()) };
        }
        length(text).map(Self::Fixed).ok_or_else(wrong)
    }
}

impl fmt::Display for Lengths {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(out, "{length}"),
            Self::Uniform(least, most) => write!(out, "{least}-{most}"),
            Self::Normal { mean, deviation } => write!(out, "normal:{mean}:{deviation}"),
            Self::Given(weights) => {
                let parts: Vec<String> = weights.iter().map(|(length, weight)| format!("{length}x{weight}")).collect();
                out.write_str(&parts.join(","))
            }
        }
    }
}

impl TryFrom<String> for Lengths {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Lengths> for String {
    fn from(lengths: Lengths) -> Self {
        lengths.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn each_form_is_read_written_and_drawn_from() {
        let mut rng = StdRng::seed_from_u64(1);
        for (text, mean) in [("512", 512.0), ("100-600", 350.0), ("normal:512:64", 512.0), ("128x3,512x1", 224.0)] {
            let lengths: Lengths = text.parse().expect(text);
            assert_eq!(lengths.to_string(), text);
            let drawn: f64 = (0..4000).map(|_| f64::from(lengths.draw(&mut rng))).sum::<f64>() / 4000.0;
            assert!((drawn - mean).abs() < 0.05 * mean, "{text}: {drawn}");
        }
        let low: Lengths = "normal:2:50".parse().expect("a distribution");
        assert!((0..1000).all(|_| low.draw(&mut rng) >= 1));
    }

    #[test]
    fn what_is_no_length_is_refused() {
        let bad = [
            "",
            "0",
            "-5",
            "600-100",
            "normal:5",
            "normal:x:1",
            "normal:5:-1",
            "128x",
            "x3",
            "5x0",
            "1e9",
            "99999999999",
        ];
        for text in bad {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}
