//! Unnormalised probabilities, and what truncates them.

use crate::simd::{Level, SUM_LANES, Simd, dispatch, exp, sum_lanes};

dispatch! {
    /// Turns logits into weights in place: `exp((logit - max) / temperature)`, of which the largest is 1.
    /// Divides, because a temperature's reciprocal could overflow.
    pub(super) fn weigh(logits: &mut [f32], max: f32, temperature: f32) = weigh_body
}

#[inline(always)]
fn weigh_body<S: Simd>(logits: &mut [f32], max: f32, temperature: f32) {
    for logit in logits {
        let weight = exp::<S>((*logit - max) / temperature);
        // An impossible token stays so at an infinite temperature.
        *logit = if weight >= 0.0 { weight } else { 0.0 };
    }
}

/// Elements that are summed in f32, before the sums are in f64.
const SUM_CHUNK: usize = 4096;

dispatch! {
    /// The sum of `exp(logit - max)`.
    pub(super) fn exp_sum(logits: &[f32], max: f32) -> f64 = exp_sum_body
}

// A plain loop: what a closure computes would not reliably be compiled for the level.
#[inline(always)]
fn exp_sum_body<S: Simd>(logits: &[f32], max: f32) -> f64 {
    let mut sum = 0.0;
    for part in logits.chunks(SUM_CHUNK) {
        let mut lanes = [0.0; SUM_LANES];
        let (chunks, tail) = part.as_chunks::<SUM_LANES>();
        for chunk in chunks {
            for i in 0..SUM_LANES {
                lanes[i] += exp::<S>(chunk[i] - max);
            }
        }
        for (lane, logit) in lanes.iter_mut().zip(tail) {
            *lane += exp::<S>(*logit - max);
        }
        sum += f64::from(sum_lanes(lanes));
    }
    sum
}

dispatch! {
    /// The sum of the weights that are `least` or more.
    pub(super) fn sum_at_least(weights: &[f32], least: f32) -> f64 = sum_at_least_body
}

#[inline(always)]
fn sum_at_least_body<S: Simd>(weights: &[f32], least: f32) -> f64 {
    weights.chunks(SUM_CHUNK).fold(0.0, |sum, chunk| sum + f64::from(chunk_at_least::<S>(chunk, least)))
}

/// In four vectors at a time: the compiler makes no good ones of this loop by itself.
#[inline(always)]
fn chunk_at_least<S: Simd>(weights: &[f32], least: f32) -> f32 {
    let mut blocks = weights.chunks_exact(4 * S::LANES);
    let mut lanes = [0.0; SUM_LANES];
    // SAFETY: blocks are of 4 vectors, and none has more than SUM_LANES lanes; the level is the dispatcher's.
    unsafe {
        let least = S::splat(least);
        let mut sums = [S::splat(0.0); 4];
        for block in blocks.by_ref() {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::at_least(S::load(block.as_ptr().add(i * S::LANES)), least));
            }
        }
        let sum = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
        S::store(sum, lanes.as_mut_ptr());
    }
    let rest = blocks.remainder().iter().filter(|w| **w >= least).sum::<f32>();
    sum_lanes(lanes) + rest
}

/// Keeps the fewest weights, largest first (of equals the earlier), that sum to `share` of all, and at least one; the
/// others become 0. The largest weight is 1.
///
/// Nothing is sorted: the smallest weight kept is found by bisection over the bits of a float, which rise with its value.
pub(super) fn keep_nucleus(level: Level, weights: &mut [f32], share: f32) {
    let target = f64::from(share) * sum_at_least(level, weights, 0.0);
    // The weights from `enough` up reach the target, those from `short` up do not.
    let (mut enough, mut short) = (0, 1f32.to_bits() + 1);
    while short - enough > 1 {
        let middle = enough + (short - enough) / 2;
        if sum_at_least(level, weights, f32::from_bits(middle)) >= target {
            enough = middle;
        } else {
            short = middle;
        }
    }
    let least = f32::from_bits(enough);
    let missing = target - sum_at_least(level, weights, f32::from_bits(short));
    // At least one: the largest, if the target is nothing.
    let equals = (missing / f64::from(least)).ceil().max(1.0) as usize;
    drop_below(weights, least);
    for weight in weights.iter_mut().filter(|w| **w == least).skip(equals) {
        *weight = 0.0;
    }
}

/// Weights below `least` become 0.
pub(super) fn drop_below(weights: &mut [f32], least: f32) {
    for weight in weights {
        *weight = if *weight < least { 0.0 } else { *weight };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// The definition, by a stable sort.
    fn sorted_nucleus(weights: &[f32], share: f32) -> Vec<f32> {
        let mut order: Vec<usize> = (0..weights.len()).collect();
        order.sort_by(|a, b| weights[*b].partial_cmp(&weights[*a]).unwrap());
        let target = f64::from(share) * weights.iter().map(|w| f64::from(*w)).sum::<f64>();
        let (mut out, mut sum) = (vec![0.0; weights.len()], 0.0);
        for (rank, i) in order.into_iter().enumerate() {
            if rank == 0 || sum < target {
                out[i] = weights[i];
            }
            sum += f64::from(weights[i]);
        }
        out
    }

    #[test]
    fn the_nucleus_is_that_of_a_stable_sort() {
        let mut random = Random::new(91);
        for level in Level::available() {
            for len in [1, 2, 40, 3000] {
                // Eighths, so that ties are common and sums exact.
                let mut weights: Vec<f32> = (0..len).map(|_| random.below(8) as f32 / 8.0).collect();
                weights[random.below(len)] = 1.0;
                for share in [-1.0, 0.0, 0.001, 0.125, 0.5, 0.75, 0.9375] {
                    let mut kept = weights.clone();
                    keep_nucleus(level, &mut kept, share);
                    assert_eq!(kept, sorted_nucleus(&weights, share), "{level:?}, {len}, {share}");
                }
            }
        }
    }
}
