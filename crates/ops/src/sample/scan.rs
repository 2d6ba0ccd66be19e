//! Passes over a whole row of logits: the largest, where it is, the `k` largest.

use std::cmp::Ordering;

use crate::simd::{Level, SUM_LANES, Simd, dispatch};

/// The largest value; `None` if there is a NaN or a positive infinity, or nothing above negative infinity.
pub(super) fn finite_max(level: Level, values: &[f32]) -> Option<f32> {
    let (max, finite) = max_and_finite(level, values);
    (finite && max > f32::NEG_INFINITY).then_some(max)
}

dispatch!(fn max_and_finite(values: &[f32]) -> (f32, bool) = max_and_finite_body);

#[inline(always)]
fn max_and_finite_body<S: Simd>(values: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; SUM_LANES];
    let mut bad = [0u32; SUM_LANES];
    let (chunks, tail) = values.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for i in 0..SUM_LANES {
            max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
            bad[i] |= u32::from(is_bad(chunk[i]));
        }
    }
    for (i, x) in tail.iter().enumerate() {
        max[i] = if *x > max[i] { *x } else { max[i] };
        bad[i] |= u32::from(is_bad(*x));
    }
    (max.into_iter().fold(f32::NEG_INFINITY, f32::max), bad.into_iter().all(|b| b == 0))
}

#[inline(always)]
fn is_bad(x: f32) -> bool {
    x.is_nan() | (x == f32::INFINITY)
}

/// The first index of `value`, which is among the values.
pub(super) fn position(level: Level, values: &[f32], value: f32) -> u32 {
    const CHUNK: usize = 512;
    let chunk = values.chunks(CHUNK).position(|chunk| contains(level, chunk, value)).unwrap_or(0);
    let within = values[chunk * CHUNK..].iter().position(|v| *v == value).unwrap_or(0);
    (chunk * CHUNK + within) as u32
}

dispatch!(fn contains(values: &[f32], value: f32) -> bool = contains_body);

#[inline(always)]
fn contains_body<S: Simd>(values: &[f32], value: f32) -> bool {
    values.iter().fold(false, |found, v| found | (*v == value))
}

/// The `k` largest values above negative infinity and their indices, largest first, of equals the lower index first.
pub(super) fn largest(level: Level, values: &[f32], k: usize) -> Vec<(f32, u32)> {
    const CHUNK: usize = 64;
    if k == 0 {
        return Vec::new();
    }
    let mut kept: Vec<(f32, u32)> = Vec::with_capacity(values.len().min(2 * k + CHUNK));
    // What a later value has to exceed to be among the k largest so far; an equal one loses to the lower index.
    let mut threshold = f32::NEG_INFINITY;
    for (c, chunk) in values.chunks(CHUNK).enumerate() {
        if !exceeds(level, chunk, threshold) {
            continue;
        }
        let indexed = chunk.iter().enumerate().map(|(i, v)| (*v, (c * CHUNK + i) as u32));
        kept.extend(indexed.filter(|(v, _)| *v > threshold));
        if kept.len() >= 2 * k {
            kept.select_nth_unstable_by(k - 1, larger_first);
            kept.truncate(k);
            threshold = kept[k - 1].0;
        }
    }
    kept.sort_unstable_by(larger_first);
    kept.truncate(k);
    kept
}

fn larger_first(a: &(f32, u32), b: &(f32, u32)) -> Ordering {
    // None is NaN; both zeros are equal.
    b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal).then(a.1.cmp(&b.1))
}

dispatch!(fn exceeds(values: &[f32], threshold: f32) -> bool = exceeds_body);

#[inline(always)]
fn exceeds_body<S: Simd>(values: &[f32], threshold: f32) -> bool {
    values.iter().fold(false, |found, v| found | (*v > threshold))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn the_largest_are_those_of_a_stable_sort() {
        let mut random = Random::new(61);
        for len in [1, 15, 64, 1000, 5000] {
            // Few distinct values, so that ties are common; some impossible.
            let draw = |random: &mut Random| match random.below(50) {
                0 => f32::NEG_INFINITY,
                n => (n as f32 - 25.0) / 4.0,
            };
            let values: Vec<f32> = (0..len).map(|_| draw(&mut random)).collect();
            let mut sorted: Vec<(f32, u32)> = values.iter().zip(0..).map(|(v, i)| (*v, i)).collect();
            sorted.retain(|(v, _)| *v > f32::NEG_INFINITY);
            sorted.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
            for level in Level::available() {
                for k in [0, 1, 2, 7, 64, 900, len] {
                    assert_eq!(largest(level, &values, k), sorted[..k.min(sorted.len())], "{level:?} {len} {k}");
                }
                if let Some((value, id)) = sorted.first() {
                    assert_eq!(finite_max(level, &values), Some(*value));
                    assert_eq!(position(level, &values, *value), *id);
                }
            }
        }
    }

    #[test]
    fn negative_zero_counts_as_zero() {
        let values = [-1.0, -0.0, 0.0, -0.0];
        for level in Level::available() {
            let max = finite_max(level, &values).unwrap();
            assert_eq!(position(level, &values, max), 1);
            let ids: Vec<u32> = largest(level, &values, 4).into_iter().map(|(_, id)| id).collect();
            assert_eq!(ids, [1, 2, 3, 0]);
        }
    }

    #[test]
    fn what_is_not_finite_is_noticed_anywhere() {
        for level in Level::available() {
            for len in [1, 16, 17, 100] {
                for at in 0..len {
                    let mut values = vec![f32::NEG_INFINITY; len];
                    assert_eq!(finite_max(level, &values), None);
                    values[at] = -3.0;
                    assert_eq!(finite_max(level, &values), Some(-3.0));
                    for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
                        values[at] = bad;
                        assert_eq!(finite_max(level, &values), None);
                    }
                }
            }
        }
    }
}
