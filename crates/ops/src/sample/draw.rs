//! The draw: a number from (seed, index) and the token it falls on.

use super::weights::sum_at_least;
use crate::simd::Level;

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

/// Draws an index with a probability proportional to its weight, in the order of the indices.
pub(super) fn draw(level: Level, weights: &[f32], uniform: f64) -> usize {
    const CHUNK: usize = 1024;
    let sums: Vec<f64> = weights.chunks(CHUNK).map(|chunk| sum_at_least(level, chunk, 0.0)).collect();
    let mut left = uniform * sums.iter().sum::<f64>();
    let first = fall(sums, &mut left) * CHUNK;
    let chunk = &weights[first..weights.len().min(first + CHUNK)];
    first + fall(chunk.iter().map(|w| f64::from(*w)), &mut left)
}

/// The index of the weight that `left`, counted from the first, falls on; `left` becomes what is over within it.
/// Rounding may take it past the end: then it is the last weight above 0.
fn fall(weights: impl IntoIterator<Item = f64>, left: &mut f64) -> usize {
    let mut last = 0;
    for (i, weight) in weights.into_iter().enumerate() {
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
