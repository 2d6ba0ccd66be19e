//! What a count of bad requests shows about the share behind it: exact binomial tests.
//!
//! The success floor is tested as Clopper and Pearson's interval would ("The use of confidence or fiducial limits
//! illustrated in the case of the binomial", Biometrika 1934): the upper end of the interval lies below the floor just
//! where so many failures would be too unlikely at the floor. Latency limits are tested by the early-stopping rule of
//! MLPerf's LoadGen, which is the same test from the other side.

use std::f64::consts::PI;

/// What a count shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// The share is below the limit.
    Within,
    /// The share is above the limit.
    Beyond,
    /// Too few requests to tell.
    Open,
}

/// Whether `count` of `n` show, at this one-sided confidence, on which side of `limit` the share behind them lies.
pub(crate) fn shown(count: u64, n: u64, limit: f64, confidence: f64) -> Shown {
    let risk = 1.0 - confidence;
    if n == 0 {
        Shown::Open
    } else if at_most(count, n, limit) <= risk {
        Shown::Within
    } else if count > 0 && 1.0 - at_most(count - 1, n, limit) <= risk {
        Shown::Beyond
    } else {
        Shown::Open
    }
}

/// The most violations among `n` requests that still show that fewer than `limit` of all violate. None: `n` is too
/// small to show it even with none.
pub(crate) fn allowed_violations(n: u64, limit: f64, confidence: f64) -> Option<u64> {
    let passes = |count| shown(count, n, limit, confidence) == Shown::Within;
    if !passes(0) {
        return None;
    }
    let (mut low, mut high) = (0, n);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if passes(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

/// The probability that at most `count` of `n` are bad if each is with probability `share`.
fn at_most(count: u64, n: u64, share: f64) -> f64 {
    if count >= n { 1.0 } else { beta_regularized((n - count) as f64, count as f64 + 1.0, 1.0 - share) }
}

/// The regularized incomplete beta function, by its continued fraction (DLMF 8.17.22), which converges fast on the
/// left of its mean; on the right its mirror image is used.
fn beta_regularized(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_regularized(b, a, 1.0 - x);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp() / a;
    front / continued_fraction(a, b, x)
}

/// 1 + d1/(1 + d2/(1 + ...)), by the modified Lentz method.
fn continued_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const MOST_TERMS: u32 = 100_000;
    let (mut value, mut c, mut d) = (1.0, 1.0, 0.0);
    for i in 1..MOST_TERMS {
        let m = f64::from(i / 2);
        let term = if i % 2 == 0 {
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        } else {
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        };
        d = 1.0 / nonzero(1.0 + term * d, TINY);
        c = nonzero(1.0 + term / c, TINY);
        value *= c * d;
        if (c * d - 1.0).abs() < 1e-14 {
            break;
        }
    }
    value
}

fn nonzero(value: f64, tiny: f64) -> f64 {
    if value.abs() < tiny { tiny } else { value }
}

/// The logarithm of the gamma function for x >= 1, by Stirling's series after moving x up to where it is exact.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 10.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let square = x * x;
    let series = 1.0 / 12.0 - (1.0 / 360.0 - (1.0 / 1260.0 - 1.0 / (1680.0 * square)) / square) / square;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + series / x
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_table_of_early_stopping_at_p99() {
        let table = [(0, 459), (1, 662), (2, 838), (5, 1307), (10, 2010), (20, 3304)];
        for (violations, requests) in table {
            assert_eq!(allowed_violations(requests, 0.01, 0.99), Some(violations), "{requests} requests");
            let before = if violations == 0 { None } else { Some(violations - 1) };
            assert_eq!(allowed_violations(requests - 1, 0.01, 0.99), before, "{requests} requests less one");
        }
    }

    #[test]
    fn the_binomial_adds_up() {
        for (n, share) in [(1_u64, 0.5), (20, 0.01), (100, 0.3), (400, 0.97)] {
            let (mut sum, mut term) = (0.0, (1.0_f64 - share).powi(n as i32));
            if term < 1e-300 {
                // 0.03^400 underflows: start from the mode's side by symmetry instead.
                assert!((at_most(380, n, share) - (1.0 - at_most(19, n, 1.0 - share))).abs() < 1e-10);
                continue;
            }
            for count in 0..=n {
                sum += term;
                assert!((at_most(count, n, share) - sum).abs() < 1e-10, "{count} of {n} at {share}");
                term *= (n - count) as f64 / (count + 1) as f64 * share / (1.0 - share);
            }
        }
        // Half of a million, by symmetry.
        let half = at_most(499_999, 999_999, 0.5);
        assert!((half - 0.5).abs() < 1e-6, "{half}");
    }

    #[test]
    fn a_floor_is_broken_only_where_that_is_shown() {
        // Clopper and Pearson's 95% interval for 1 failure of 20 is [0.1%, 24.9%].
        assert_eq!(shown(1, 20, 0.0014, 0.975), Shown::Open);
        assert_eq!(shown(1, 20, 0.0012, 0.975), Shown::Beyond);
        assert_eq!(shown(1, 20, 0.2485, 0.975), Shown::Open);
        assert_eq!(shown(1, 20, 0.2490, 0.975), Shown::Within);
        assert_eq!(shown(1, 1, 0.01, 0.975), Shown::Beyond);
        assert_eq!(shown(0, 0, 0.01, 0.975), Shown::Open);
    }
}
