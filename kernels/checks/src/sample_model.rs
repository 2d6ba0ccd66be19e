//! What the device's sampler must choose: the definition in f64, with whole rows sorted, and the same noise to the bit.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use plimsoll_kernels::sample::{NONE, SampleRow};
use plimsoll_ops::sample::{SampleParams, TokenCounts};

/// One row's parameters, owned.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) bias: BTreeMap<u32, f32>,
    pub(crate) allowed: Option<Vec<u32>>,
    pub(crate) banned: Vec<u32>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) output: Vec<u32>,
    /// One more generated token, that only the device knows.
    pub(crate) last: Option<u32>,
    pub(crate) repetition_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) logprobs: Option<u32>,
    pub(crate) temperature: f32,
    pub(crate) top_k: u32,
    pub(crate) top_p: f32,
    pub(crate) min_p: f32,
    pub(crate) seed: u64,
    pub(crate) index: u32,
}

impl Request {
    /// Greedy, with nothing else.
    pub(crate) fn greedy() -> Self {
        Self {
            bias: BTreeMap::new(),
            allowed: None,
            banned: Vec::new(),
            prompt: Vec::new(),
            output: Vec::new(),
            last: None,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logprobs: None,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            index: 0,
        }
    }

    /// What every row has, for the device: no adjustments, bans or mask.
    pub(crate) fn record(&self, slot: u32) -> SampleRow {
        SampleRow {
            seed: self.seed,
            slot,
            index: self.index,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logprobs: self.logprobs.unwrap_or(NONE),
            count_last: self.last.is_some(),
            ..SampleRow::GREEDY
        }
    }

    /// Each token in prompt or output and how often it was generated; with or without the last.
    pub(crate) fn seen(&self, with_last: bool) -> BTreeMap<u32, u32> {
        let mut seen: BTreeMap<u32, u32> = self.prompt.iter().map(|token| (*token, 0)).collect();
        let last = self.last.iter().filter(|_| with_last);
        self.output.iter().chain(last).for_each(|token| *seen.entry(*token).or_insert(0) += 1);
        seen
    }

    pub(crate) fn counts(&self) -> TokenCounts {
        let mut counts = TokenCounts::new();
        counts.add_prompt(&self.prompt);
        self.output.iter().chain(&self.last).for_each(|token| counts.add_output(*token));
        counts
    }

    /// For the CPU op.
    pub(crate) fn params<'a>(&'a self, counts: &'a TokenCounts, bias: &'a [(u32, f32)]) -> SampleParams<'a> {
        SampleParams {
            logit_bias: bias,
            allowed: self.allowed.as_deref(),
            banned: &self.banned,
            counts,
            repetition_penalty: self.repetition_penalty,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logprobs: self.logprobs,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            index: self.index,
        }
    }

    /// The logits that probabilities are made of. Not for rows that no token is possible in.
    pub(crate) fn adjusted(&self, raw: &[f32]) -> Vec<f32> {
        let seen = self.seen(true);
        let bounded = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) };
        let adjusted = |(id, logit): (usize, &f32)| {
            let id = id as u32;
            if self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(&id)) {
                return f32::NEG_INFINITY;
            }
            let logit = bounded(logit + self.bias.get(&id).unwrap_or(&0.0));
            seen.get(&id).map_or(logit, |generated| bounded(self.penalized(logit, *generated)))
        };
        let before_bans: Vec<f32> = raw.iter().enumerate().map(adjusted).collect();
        let mut logits = before_bans.clone();
        self.banned
            .iter()
            .filter(|id| (**id as usize) < raw.len())
            .for_each(|id| logits[*id as usize] = f32::NEG_INFINITY);
        if logits.iter().any(|logit| *logit > f32::NEG_INFINITY) { logits } else { before_bans }
    }

    fn penalized(&self, logit: f32, generated: u32) -> f32 {
        let repetition = self.repetition_penalty;
        let logit = if logit > 0.0 { logit / repetition } else { logit * repetition };
        if generated == 0 {
            return logit;
        }
        logit - self.frequency_penalty * generated as f32 - self.presence_penalty
    }

    /// The tokens that may be drawn and their probabilities.
    pub(crate) fn kept(&self, adjusted: &[f32]) -> Kept {
        let mut order: Vec<usize> = (0..adjusted.len()).filter(|id| adjusted[*id] > f32::NEG_INFINITY).collect();
        // Stable, and both zeros are equal.
        order.sort_by(|a, b| adjusted[*b].partial_cmp(&adjusted[*a]).unwrap_or(Ordering::Equal));
        if self.top_k > 0 {
            order.truncate(self.top_k as usize);
        }
        let max = f64::from(adjusted[order[0]]);
        let weight = |id: &usize| ((f64::from(adjusted[*id]) - max) / f64::from(self.temperature)).exp();
        let total: f64 = order.iter().map(weight).sum();
        let (mut kept, mut before, mut close) = (Vec::new(), 0.0, false);
        for id in &order {
            let (weight, target) = (weight(id), f64::from(self.top_p) * total);
            close |= self.top_p < 1.0 && before > 0.0 && (before - target).abs() < 1e-5 * total;
            close |= self.min_p > 0.0 && (weight / f64::from(self.min_p.min(1.0)) - 1.0).abs() < 1e-5 && weight < 1.0;
            let in_nucleus = kept.is_empty() || self.top_p >= 1.0 || before < target;
            if in_nucleus && (weight >= f64::from(self.min_p.min(1.0)) || self.min_p <= 0.0) {
                kept.push((*id as u32, weight));
            }
            before += weight;
        }
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        kept.iter_mut().for_each(|(_, weight)| *weight /= total);
        Kept { tokens: kept, close }
    }

    /// The draw among some tokens: the largest logit / temperature + noise, of equals the lowest id.
    pub(crate) fn draw(&self, adjusted: &[f32], tokens: impl Iterator<Item = u32>) -> u32 {
        let per_temperature = 1.0 / f64::from(self.temperature);
        let stream = hash(hash(self.seed, 1), u64::from(self.index) + 1);
        let score =
            |token: u32| f64::from(adjusted[token as usize]).mul_add(per_temperature, f64::from(gumbel(stream, token)));
        let mut best = (f64::NEG_INFINITY, u32::MAX);
        for token in tokens {
            let score = score(token);
            if score > best.0 || (score == best.0 && token < best.1) {
                best = (score, token);
            }
        }
        best.1
    }
}

pub(crate) struct Kept {
    /// Token and probability, likeliest first.
    pub(crate) tokens: Vec<(u32, f64)>,
    /// Whether a sum or weight is so close to its limit that rounding may decide.
    pub(crate) close: bool,
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), `steps` after `state`.
fn hash(state: u64, steps: u64) -> u64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let z = state.wrapping_add(steps.wrapping_mul(GOLDEN));
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Standard Gumbel noise, with the operations of `gumbel.cuh` in their order.
pub(crate) fn gumbel(stream: u64, token: u32) -> f32 {
    let bits = (hash(stream, u64::from(token) + 1) >> 32) as u32;
    let a = (bits as f32).mul_add(2f32.powi(-32), 2f32.powi(-33)).min(1.0 - 2f32.powi(-24));
    let (exponent, f) = split_exponent(1.0 - a);
    let exponential = -ln_of_parts(exponent, if exponent == 0 { -a } else { f });
    let (exponent, f) = split_exponent(exponential);
    -ln_of_parts(exponent, f)
}

fn split_exponent(x: f32) -> (i32, f32) {
    let exponent = (x.to_bits() as i32 - 0x3F35_04F3) >> 23;
    (exponent, f32::from_bits((x.to_bits() as i32 - (exponent << 23)) as u32) - 1.0)
}

fn ln_of_parts(exponent: i32, f: f32) -> f32 {
    const COEFFICIENTS: [f32; 7] =
        [0.126_223_19, -0.129_981_83, 0.142_144_96, -0.166_412_82, 0.200_010_45, -0.250_003_07, 0.333_333_3];
    let p = COEFFICIENTS.iter().fold(-0.079_027_44f32, |p, c| p.mul_add(f, *c));
    let square = f * f;
    let tail = (square * f).mul_add(p, -0.5 * square);
    (exponent as f32).mul_add(std::f32::consts::LN_2, f + tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pearson's test over many draws: within 5 deviations of what is expected of it, by index and by seed.
    #[test]
    fn draws_follow_the_distribution() {
        const DRAWS: u32 = 40_000;
        let logits: Vec<f32> = (0..40).map(|i| (i * i % 17) as f32 * 0.3).collect();
        for by_seed in [false, true] {
            let mut request = Request { temperature: 1.3, top_k: 30, ..Request::greedy() };
            let kept = request.kept(&logits);
            let mut seen = vec![0.0; logits.len()];
            for i in 0..DRAWS {
                if by_seed {
                    request.seed = u64::from(i)
                } else {
                    request.index = i
                }
                seen[request.draw(&logits, kept.tokens.iter().map(|(token, _)| *token)) as usize] += 1.0;
            }
            let term = |(token, p): &(u32, f64)| {
                let mean = p * f64::from(DRAWS);
                (seen[*token as usize] - mean).powi(2) / mean
            };
            let (statistic, freedom) = (kept.tokens.iter().map(term).sum::<f64>(), 29.0);
            assert!(statistic < freedom + 5.0 * f64::sqrt(2.0 * freedom), "{statistic}, by seed: {by_seed}");
        }
    }

    #[test]
    fn noise_is_what_its_definition_says() {
        for token in 0..100_000 {
            let bits = f64::from((hash(7, u64::from(token) + 1) >> 32) as u32);
            let a = (bits + 0.5) / 2f64.powi(32);
            let exponential = -f64::ln_1p(-a);
            let want = -exponential.ln();
            // The uniform number is rounded to f32, which shows near 1.
            let rounding = 2f64.powi(-24) / (1.0 - a) / exponential;
            let got = f64::from(gumbel(7, token));
            assert!((got - want).abs() < 2e-6 + rounding.min(1.0), "{token}: {got}, expected {want}");
        }
    }
}
