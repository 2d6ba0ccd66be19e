//! Estimators over plain numbers: percentiles, batch means, the end of a transient.

/// Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal's 1.96 is close enough.
const STUDENT_T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// How many batches an interval is made from.
const BATCHES: usize = 10;

/// The nearest-rank percentile of ascending values followed by `infinite` more that are infinite: the value at rank
/// ceil(p/100 * n). None where that is one of the infinite ones, or where there is nothing.
pub fn nearest_rank(ascending: &[f64], infinite: usize, percent: f64) -> Option<f64> {
    let count = ascending.len() + infinite;
    let rank = (percent / 100.0 * count as f64).ceil().max(1.0) as usize;
    ascending.get(rank - 1).copied()
}

/// The ranks, from 1, of the ascending values that enclose a percentile with 95% confidence, by the normal approximation
/// of the binomial distribution of how many of `count` values lie below it (Conover, "Practical Nonparametric
/// Statistics", 3.2). None if one of them would lie beyond the values.
pub(crate) fn rank_interval(count: usize, percent: f64) -> Option<[usize; 2]> {
    let share = percent / 100.0;
    let below = count as f64 * share;
    let deviation = 1.96 * (below * (1.0 - share)).sqrt();
    let (low, high) = ((below - deviation).ceil(), (below + deviation).ceil());
    (low >= 1.0 && high <= count as f64 && deviation > 0.0).then_some([low as usize, high as usize])
}

pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The 95% half-width of the mean of a series by the method of batch means: the series is cut into ten equal batches,
/// whose means are nearly independent where a batch is longer than the series' memory. None if the series is shorter
/// than ten values.
pub(crate) fn half_width(series: &[f64]) -> Option<f64> {
    let length = series.len() / BATCHES;
    if length == 0 {
        return None;
    }
    // What does not fill a batch is left out at the beginning, where a transient would be.
    let used = &series[series.len() - length * BATCHES..];
    let means: Vec<f64> = used.chunks_exact(length).filter_map(mean).collect();
    let centre = mean(&means)?;
    let degrees = means.len() - 1;
    let variance = means.iter().map(|m| (m - centre).powi(2)).sum::<f64>() / degrees as f64;
    Some(STUDENT_T_95.get(degrees - 1).copied().unwrap_or(1.96) * (variance / means.len() as f64).sqrt())
}

/// The slope of a series by least squares, in units a step, and its 95% half-width. Fitted to the means of ten equal
/// batches, which are nearly independent where single values are not. None if the series is shorter than ten values.
pub(crate) fn slope(series: &[f64]) -> Option<(f64, f64)> {
    let length = series.len() / BATCHES;
    if length == 0 {
        return None;
    }
    let used = &series[series.len() - length * BATCHES..];
    let means: Vec<f64> = used.chunks_exact(length).filter_map(mean).collect();
    let centre = mean(&means)?;
    let middle = (BATCHES as f64 - 1.0) / 2.0;
    let steps = || (0..BATCHES).map(|i| i as f64 - middle);
    let spread: f64 = steps().map(|x| x * x).sum();
    let slope = steps().zip(&means).map(|(x, y)| x * (y - centre)).sum::<f64>() / spread;
    let residual: f64 = steps().zip(&means).map(|(x, y)| (y - centre - slope * x).powi(2)).sum();
    let degrees = BATCHES - 2;
    let error = (residual / degrees as f64 / spread).sqrt();
    Some((slope / length as f64, STUDENT_T_95[degrees - 1] * error / length as f64))
}

/// How many values at the start of a series belong to a transient: the truncation that gives the smallest marginal
/// standard error of the mean of the rest (MSER; White, "An effective truncation heuristic for bias reduction in
/// simulation output", 1997). At most half.
pub(crate) fn transient(series: &[f64]) -> usize {
    let n = series.len();
    let (mut sum, mut squares, mut best, mut cut) = (0.0, 0.0, f64::INFINITY, 0);
    for start in (0..n).rev() {
        sum += series[start];
        squares += series[start] * series[start];
        let left = (n - start) as f64;
        let error = (squares - sum * sum / left).max(0.0) / (left * left);
        if start <= n / 2 && error <= best {
            (best, cut) = (error, start);
        }
    }
    cut
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn nearest_rank_is_a_value_of_the_sample() {
        let values = [15.0, 20.0, 35.0, 40.0, 50.0];
        let cases = [(5.0, 15.0), (30.0, 20.0), (40.0, 20.0), (50.0, 35.0), (100.0, 50.0), (0.0, 15.0)];
        for (percent, expected) in cases {
            assert_eq!(nearest_rank(&values, 0, percent), Some(expected), "p{percent}");
        }
        assert_eq!(nearest_rank(&[], 0, 50.0), None);
    }

    #[test]
    fn the_interval_of_a_percentile_holds_it_about_as_often_as_it_says() {
        let mut rng = StdRng::seed_from_u64(4);
        for percent in [50.0, 95.0] {
            let covered = (0..1000)
                .filter(|_| {
                    let mut values: Vec<f64> = (0..300).map(|_| rng.random::<f64>().powi(3)).collect();
                    values.sort_unstable_by(f64::total_cmp);
                    let [low, high] = rank_interval(300, percent).expect("300 values").map(|rank| values[rank - 1]);
                    (low..=high).contains(&(percent / 100.0_f64).powi(3))
                })
                .count();
            assert!((920..=975).contains(&covered), "p{percent}: {covered} of 1000 at 95%");
        }
        assert_eq!(rank_interval(100, 99.0), None);
        assert_eq!((rank_interval(0, 50.0), rank_interval(3, 50.0)), (None, None));
        assert_eq!(rank_interval(100, 50.0), Some([41, 60]));
    }

    #[test]
    fn failures_are_infinite() {
        let values: Vec<f64> = (1..=98).map(f64::from).collect();
        assert_eq!(nearest_rank(&values, 2, 98.0), Some(98.0));
        assert_eq!(nearest_rank(&values, 2, 99.0), None);
        assert_eq!(nearest_rank(&[], 5, 50.0), None);
    }

    #[test]
    fn the_interval_holds_the_mean_about_as_often_as_it_says() {
        let mut rng = StdRng::seed_from_u64(1);
        let covered = (0..1000)
            .filter(|_| {
                let series: Vec<f64> = (0..200).map(|_| 100.0 + 20.0 * (rng.random::<f64>() - 0.5)).collect();
                let width = half_width(&series).expect("200 values");
                (mean(&series).expect("200 values") - 100.0).abs() <= width
            })
            .count();
        assert!((920..=975).contains(&covered), "{covered} of 1000 at 95%");
        assert_eq!(half_width(&[1.0; 9]), None);
        assert_eq!(half_width(&[3.0; 20]), Some(0.0));
    }

    #[test]
    fn a_slope_is_found_and_a_level_series_has_none() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut line = |slope: f64| (0..100).map(|i| slope * f64::from(i) + rng.random::<f64>()).collect::<Vec<_>>();
        let (found, width) = slope(&line(0.5)).expect("100 values");
        assert!((found - 0.5).abs() < width && width < 0.02, "{found} ± {width}");
        let level = (0..400).filter(|_| slope(&line(0.0)).is_some_and(|(found, width)| found.abs() <= width)).count();
        assert!((365..=392).contains(&level), "{level} of 400 at 95%");
        assert_eq!(slope(&[1.0; 9]), None);
    }

    #[test]
    fn a_transient_is_cut_and_a_steady_series_is_kept() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut noisy = |level: f64| level + rng.random::<f64>();
        let mut series: Vec<f64> = (0..20).map(|i| noisy(f64::from(i) * 5.0)).collect();
        series.extend((0..80).map(|_| noisy(100.0)));
        assert!((18..=22).contains(&transient(&series)), "{}", transient(&series));
        let steady: Vec<f64> = (0..100).map(|_| noisy(100.0)).collect();
        assert!(transient(&steady) <= 25, "{}", transient(&steady));
        assert_eq!(transient(&[5.0; 10]), 0);
        assert_eq!(transient(&[]), 0);
    }
}
