//! What counts of passes, and differences of two runs, show.

use serde::{Deserialize, Serialize};

/// Of the normal distribution, for 95%.
const Z: f64 = 1.959_964;

/// An interval that holds the true value with 95% confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// Wilson's score interval of a share: `passed` of `count`. Of nothing it is 0 to 1.
pub(crate) fn wilson(passed: usize, count: usize) -> Interval {
    if count == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let (n, share) = (count as f64, passed as f64 / count as f64);
    let z2 = Z * Z;
    let center = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    Interval { low: (center - half).max(0.0), high: (center + half).min(1.0) }
}

/// McNemar's exact test, two-sided: how likely it is that of all tasks that only one of two runs passed at least so many
/// are one run's, if both were equally good.
pub(crate) fn mcnemar(only_first: usize, only_second: usize) -> f64 {
    let n = only_first + only_second;
    let fewer = only_first.min(only_second);
    let mut term = 0.5f64.powi(n as i32);
    let mut tail = 0.0;
    for k in 0..=fewer {
        tail += term;
        term *= (n - k) as f64 / (k + 1) as f64;
    }
    (2.0 * tail).min(1.0)
}

/// The mean of differences and its interval by Student's distribution; `None` of fewer than four, which show nothing.
pub(crate) fn mean_of(differences: &[f64]) -> Option<(f64, Interval)> {
    let n = differences.len() as f64;
    if differences.len() < 4 {
        return None;
    }
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half = student(n - 1.0) * (variance / n).sqrt();
    Some((mean, Interval { low: mean - half, high: mean + half }))
}

/// Of Student's distribution with so many degrees of freedom, for 95%: the expansion of Cornish and Fisher around the normal
/// one, within 1% from three degrees on and too small below.
fn student(freedom: f64) -> f64 {
    let term = |coefficients: [f64; 4], divisor: f64| {
        let [first, third, fifth, seventh] = coefficients;
        (first * Z + third * Z.powi(3) + fifth * Z.powi(5) + seventh * Z.powi(7)) / divisor
    };
    Z + term([1.0, 1.0, 0.0, 0.0], 4.0 * freedom)
        + term([3.0, 16.0, 5.0, 0.0], 96.0 * freedom.powi(2))
        + term([-15.0, 17.0, 19.0, 3.0], 384.0 * freedom.powi(3))
}

/// The value that a share of all are at or below, by the nearest rank; `None` of nothing.
pub(crate) fn quantile(values: &mut [f64], share: f64) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 5e-4
    }

    #[test]
    fn wilson_intervals_of_the_textbook() {
        let Interval { low, high } = wilson(8, 10);
        assert!(is_near(low, 0.4902) && is_near(high, 0.9433), "{low} {high}");
        let Interval { low, high } = wilson(0, 20);
        assert!(low == 0.0 && is_near(high, 0.1611), "{high}");
        assert_eq!(wilson(0, 0), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn mcnemar_counts_the_tasks_that_differ() {
        assert_eq!(mcnemar(0, 0), 1.0);
        assert_eq!(mcnemar(3, 3), 1.0);
        assert!(is_near(mcnemar(0, 6), 2.0 / 64.0));
        assert!(is_near(mcnemar(8, 1), 2.0 * 10.0 / 512.0));
        assert_eq!(mcnemar(1, 8), mcnemar(8, 1));
    }

    #[test]
    fn means_and_quantiles() {
        // The textbook's 3.182, 2.365 and 2.042 with 3, 7 and 30 degrees of freedom.
        for (freedom, expected) in [(3.0, 3.182), (7.0, 2.365), (30.0, 2.042)] {
            assert!((student(freedom) / expected - 1.0).abs() < 0.01, "{freedom}: {}", student(freedom));
        }
        let (mean, interval) = mean_of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert!(mean == 2.5 && (interval.high - 2.5 - 3.182 * 1.291 / 2.0).abs() < 0.05, "{interval:?}");
        assert_eq!(mean_of(&[1.0, 2.0, 3.0]), None);
        assert_eq!(quantile(&mut [3.0, 1.0, 2.0], 0.5), Some(2.0));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
