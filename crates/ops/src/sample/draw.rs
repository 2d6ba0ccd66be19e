//! The draw: a number from (seed, index) and the token it falls on.

use super::scan;
use crate::simd::{Level, SUM_LANES, Simd, dispatch, exp, sum_lanes};

/// Uniform in `[0, 1)` with 53 bits, a hash of seed and index: no state, so a draw can be repeated in any batch.
/// The finalizer is SplitMix64's (Steele, Lea and Flood, OOPSLA 2014).
pub(super) fn uniform(seed: u64, index: u32) -> f64 {
    fn mix(z: u64) -> u64 {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    // The seed is mixed first, so that neighbouring seeds do not share a sequence shifted by one.
    let bits = mix(mix(seed.wrapping_add(GOLDEN)).wrapping_add(u64::from(index).wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Turns logits into weights: `exp((logit - max) / temperature)`, the likeliest token's being 1, and 0 if below `min`.
#[derive(Clone, Copy)]
pub(super) struct Weigh {
    pub(super) max: f32,
    /// Above 0. It divides: its reciprocal could overflow.
    pub(super) temperature: f32,
    pub(super) min: f32,
}

/// Logits whose weights are summed together.
const CHUNK: usize = 256;

impl Weigh {
    /// Temperature 1, nothing dropped.
    pub(super) fn plain(max: f32) -> Weigh {
        Weigh { max, temperature: 1.0, min: 0.0 }
    }

    /// The sum of all weights.
    pub(super) fn total(&self, level: Level, logits: &[f32]) -> f64 {
        logits.chunks(CHUNK).map(|chunk| f64::from(weight_sum(level, chunk, self))).sum()
    }

    #[inline(always)]
    fn weight<S: Simd>(&self, logit: f32) -> f32 {
        let weight = exp::<S>((logit - self.max) / self.temperature);
        if weight >= self.min { weight } else { 0.0 }
    }
}

dispatch!(fn weight_sum(logits: &[f32], weigh: &Weigh) -> f32 = weight_sum_body);

#[inline(always)]
fn weight_sum_body<S: Simd>(logits: &[f32], weigh: &Weigh) -> f32 {
    let mut lanes = [0.0; SUM_LANES];
    let (chunks, tail) = logits.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for i in 0..SUM_LANES {
            lanes[i] += weigh.weight::<S>(chunk[i]);
        }
    }
    for (lane, logit) in lanes.iter_mut().zip(tail) {
        *lane += weigh.weight::<S>(*logit);
    }
    sum_lanes(lanes)
}

dispatch!(fn weigh_all(logits: &mut [f32], weigh: &Weigh) = weigh_all_body);

#[inline(always)]
fn weigh_all_body<S: Simd>(logits: &mut [f32], weigh: &Weigh) {
    for logit in logits {
        *logit = weigh.weight::<S>(*logit);
    }
}

/// Draws from all tokens in the order of their ids.
pub(super) fn from_all(level: Level, logits: &[f32], weigh: &Weigh, uniform: f64) -> u32 {
    let sums: Vec<f64> = logits.chunks(CHUNK).map(|chunk| f64::from(weight_sum(level, chunk, weigh))).collect();
    let mut left = uniform * sums.iter().sum::<f64>();
    let chunk = fall(sums.iter().copied(), &mut left);
    let first = chunk * CHUNK;
    let mut weights = logits[first..logits.len().min(first + CHUNK)].to_vec();
    weigh_all(level, &mut weights, weigh);
    (first + fall(weights.into_iter().map(f64::from), &mut left)) as u32
}

/// Draws from the `top_k` likeliest, cut to those that reach `top_p` of their probability, likeliest first.
pub(super) fn from_likeliest(
    level: Level,
    logits: &[f32],
    weigh: &Weigh,
    top_k: usize,
    top_p: f32,
    uniform: f64,
) -> u32 {
    let all = Weigh { min: 0.0, ..*weigh };
    let truncated = top_k < logits.len();
    // Without a top_k the nucleus is usually small: look among ever more of the likeliest until it is complete.
    let mut candidates = if truncated { top_k } else { 64.min(top_k) };
    loop {
        let likeliest = scan::largest(level, logits, candidates);
        let mut weights: Vec<f32> = likeliest.iter().map(|(logit, _)| *logit).collect();
        weigh_all(level, &mut weights, &all);
        let total = if truncated { weights.iter().map(|w| f64::from(*w)).sum() } else { all.total(level, logits) };
        let complete = candidates == top_k || likeliest.len() < candidates;
        let nucleus = nucleus_len(&weights, f64::from(top_p) * total);
        if nucleus.is_none() && !complete {
            candidates = (candidates * 8).min(top_k);
            continue;
        }
        weights.truncate(nucleus.unwrap_or(weights.len()));
        let kept = || weights.iter().map(|w| if *w >= weigh.min { f64::from(*w) } else { 0.0 });
        let mut left = uniform * kept().sum::<f64>();
        return likeliest[fall(kept(), &mut left)].1;
    }
}

/// How many of the weights, at least one, sum to `target`; `None` if all do not.
fn nucleus_len(weights: &[f32], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    weights
        .iter()
        .position(|weight| {
            sum += f64::from(*weight);
            sum >= target
        })
        .map(|last| last + 1)
}

/// The index of the weight that `left`, counted from the first, falls on; `left` becomes what is over within it.
/// Rounding may take it past the end: then it is the last weight above 0.
fn fall(weights: impl Iterator<Item = f64>, left: &mut f64) -> usize {
    let mut last = 0;
    for (i, weight) in weights.enumerate() {
        if weight > 0.0 {
            if *left < weight {
                return i;
            }
            last = i;
            *left -= weight;
        }
    }
    last
}
