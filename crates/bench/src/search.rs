//! The saturation search: which concurrency to measure next, and what the measurements say.
//!
//! A pure function of the rungs measured so far. It must never know how a rung is measured.
//!
//! First a ladder, N = 1, 2, 4 ..., until two doublings in a row each gain less than 5% (by the upper end of their
//! confidence intervals, where rungs have one), or service breaks, or the highest concurrency is reached. Then a
//! bisection for the saturation point: the smallest N with at least 95% of the highest throughput. One flat or falling
//! doubling is not enough to stop, because throughput can dip and go on rising.

use serde::{Deserialize, Serialize};

/// What the search is to find, and how far it may go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SearchConfig {
    pub max_concurrency: u32,
    /// A doubling that gains less than this share is flat.
    pub flat_gain: f64,
    /// So many flat doublings in a row are a plateau.
    pub flat_doublings: u32,
    /// The saturation point is the smallest concurrency with this share of the highest throughput.
    pub saturation_share: f64,
    /// The bisection stops at an interval of this share of its upper end.
    pub resolution: f64,
    /// Below this share of successes service is broken: the rung ends the ladder and does not count as throughput.
    pub success_floor: f64,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            max_concurrency: 4096,
            flat_gain: 0.05,
            flat_doublings: 2,
            saturation_share: 0.95,
            resolution: 0.05,
            success_floor: 0.99,
        }
    }
}

/// One measured rung, as far as the search looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RungPoint {
    pub concurrency: u32,
    /// Output tokens a second.
    pub throughput: f64,
    /// 95% half-width of the throughput, if the rung was long enough to tell.
    pub half_width: Option<f64>,
    /// 0 to 1.
    pub success_rate: f64,
    /// Share of the requests that were refused with 429 or 503.
    pub refused_rate: f64,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    Measure(u32),
    Done(Answer),
}

/// What bounds the throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// More concurrency brings no more throughput.
    Plateaued,
    /// Past its peak, throughput falls by more than a flat doubling.
    Retrograde,
    /// Throughput was still rising where the ladder ended.
    StillScaling,
    /// The server began to refuse requests (429, 503) before a plateau was seen.
    AdmissionLimited,
    /// Requests began to fail before a plateau was seen.
    ServiceBroken,
    /// The client was too near its own ceiling for the result to be the server's.
    ClientLimited,
    /// The time for the search ran out before a plateau was seen.
    OutOfTime,
}

/// Where throughput saturates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub verdict: Verdict,
    /// The smallest concurrency measured that has the share of the highest throughput. Where throughput was still
    /// rising this is no more than a lower bound.
    pub saturation: u32,
    /// The smallest concurrencies that could be it, by the ends of the confidence intervals.
    pub saturation_low: u32,
    pub saturation_high: u32,
    /// Where the highest throughput was measured, and what it was.
    pub peak: u32,
    pub peak_throughput: f64,
    /// The rung at which service broke, if one did.
    pub broken_at: Option<u32>,
}

/// What to do after `rungs`, in whatever order they were measured. None: no rung served anything, so there is nothing
/// to search.
pub fn next_step(config: &SearchConfig, rungs: &[RungPoint]) -> Option<Step> {
    let rungs = Rungs::new(config, rungs);
    if rungs.all.is_empty() {
        return Some(Step::Measure(1));
    }
    let verdict = match rungs.ladder() {
        Ladder::Climb(next) => return Some(Step::Measure(next)),
        Ladder::End(verdict) => verdict,
    };
    if verdict != Verdict::StillScaling
        && let Some(next) = rungs.bisect()?
    {
        return Some(Step::Measure(next));
    }
    rungs.answer(verdict).map(Step::Done)
}

/// The answer from what there is, when no more can be measured.
pub(crate) fn answer_now(config: &SearchConfig, rungs: &[RungPoint]) -> Option<Answer> {
    let rungs = Rungs::new(config, rungs);
    match rungs.ladder() {
        Ladder::Climb(_) => rungs.answer(Verdict::OutOfTime),
        Ladder::End(verdict) => rungs.answer(verdict),
    }
}

enum Ladder {
    Climb(u32),
    End(Verdict),
}

struct Rungs<'a> {
    config: &'a SearchConfig,
    /// By concurrency, ascending.
    all: Vec<RungPoint>,
}

impl<'a> Rungs<'a> {
    fn new(config: &'a SearchConfig, rungs: &[RungPoint]) -> Self {
        let mut all = rungs.to_vec();
        all.sort_by_key(|rung| rung.concurrency);
        Self { config, all }
    }

    fn serves(&self, rung: &RungPoint) -> bool {
        rung.success_rate >= self.config.success_floor && rung.throughput > 0.0
    }

    fn broken(&self) -> Option<&RungPoint> {
        self.all.iter().find(|rung| !self.serves(rung))
    }

    /// The rungs below the first broken one.
    fn serving(&self) -> &[RungPoint] {
        let end = self.all.iter().position(|rung| !self.serves(rung)).unwrap_or(self.all.len());
        &self.all[..end]
    }

    fn peak(&self) -> Option<&RungPoint> {
        self.serving().iter().max_by(|a, b| a.throughput.total_cmp(&b.throughput))
    }

    /// The rungs of the ladder, which the bisection's are not: each concurrency twice the one before, and the highest.
    fn doublings(&self) -> impl Iterator<Item = (&RungPoint, &RungPoint)> {
        let on_ladder =
            |rung: &&RungPoint| rung.concurrency.is_power_of_two() || rung.concurrency == self.config.max_concurrency;
        let ladder: Vec<&RungPoint> = self.serving().iter().filter(on_ladder).collect();
        (1..ladder.len()).map(move |i| (ladder[i - 1], ladder[i])).collect::<Vec<_>>().into_iter()
    }

    fn ladder(&self) -> Ladder {
        let flat: Vec<bool> = self.doublings().map(|(low, high)| self.is_flat(low, high)).collect();
        let flat_at_end = flat.iter().rev().take_while(|flat| **flat).count() as u32;
        if flat_at_end >= self.config.flat_doublings {
            return Ladder::End(self.shape());
        }
        if let Some(broken) = self.broken() {
            let refused = broken.refused_rate >= (1.0 - broken.success_rate) / 2.0;
            return Ladder::End(if refused { Verdict::AdmissionLimited } else { Verdict::ServiceBroken });
        }
        let top = self.all.iter().map(|rung| rung.concurrency).max().unwrap_or(0);
        if top < self.config.max_concurrency {
            let next = if top == 0 { 1 } else { (top + 1).next_power_of_two() };
            return Ladder::Climb(next.min(self.config.max_concurrency));
        }
        // At the highest concurrency one flat doubling has to do.
        Ladder::End(if flat_at_end > 0 { self.shape() } else { Verdict::StillScaling })
    }

    /// Whether throughput gained less than `flat_gain` from `low` to `high`, with confidence where there is one.
    fn is_flat(&self, low: &RungPoint, high: &RungPoint) -> bool {
        let gain = high.throughput / low.throughput - 1.0;
        let relative = |rung: &RungPoint| rung.half_width.unwrap_or(0.0) / rung.throughput;
        let error = (1.0 + gain) * relative(low).hypot(relative(high));
        // An interval wider than what is looked for can tell nothing apart: then the estimate itself decides, or a
        // noisy server would be driven to the highest concurrency on the strength of its noise.
        let bound = if error < self.config.flat_gain { gain + error } else { gain };
        bound < self.config.flat_gain
    }

    /// A plateau, or a peak with a fall behind it.
    fn shape(&self) -> Verdict {
        let (Some(peak), Some(last)) = (self.peak(), self.serving().last()) else { return Verdict::Plateaued };
        let falls =
            last.throughput + last.half_width.unwrap_or(0.0) < peak.throughput * (1.0 - 2.0 * self.config.flat_gain);
        if falls { Verdict::Retrograde } else { Verdict::Plateaued }
    }

    /// The next concurrency between the greatest that is not saturated and the smallest that is. `Some(None)`: they are
    /// close enough; None: nothing served.
    fn bisect(&self) -> Option<Option<u32>> {
        let high = self.saturated(|rung| rung.throughput)?;
        let low = self.all.iter().map(|rung| rung.concurrency).filter(|n| *n < high).max().unwrap_or(0);
        let resolution = ((f64::from(high) * self.config.resolution) as u32).max(1);
        Some((low > 0 && high - low > resolution).then_some(low + (high - low) / 2))
    }

    /// The smallest concurrency whose throughput, by `value`, has the share of the peak's.
    fn saturated(&self, value: impl Fn(&RungPoint) -> f64) -> Option<u32> {
        let enough = self.peak()?.throughput * self.config.saturation_share;
        let first = self.serving().iter().find(|rung| value(rung) >= enough);
        Some(first.or_else(|| self.peak())?.concurrency)
    }

    fn answer(&self, verdict: Verdict) -> Option<Answer> {
        let peak = self.peak()?;
        let half_width = |rung: &RungPoint| rung.half_width.unwrap_or(0.0);
        let saturation = self.saturated(|rung| rung.throughput)?;
        let high = self.saturated(|rung| rung.throughput - half_width(rung))?;
        Some(Answer {
            verdict,
            saturation,
            saturation_low: self.saturated(|rung| rung.throughput + half_width(rung))?,
            saturation_high: high.max(saturation),
            peak: peak.concurrency,
            peak_throughput: peak.throughput,
            broken_at: self.broken().map(|rung| rung.concurrency),
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Published throughputs (tok/s) by concurrency.
    const STILL_SCALING: [(u32, f64); 5] = [(4, 260.0), (8, 475.0), (16, 815.0), (32, 1326.0), (64, 2107.0)];
    const RETROGRADE: [(u32, f64); 5] = [(4, 151.0), (8, 273.0), (16, 479.0), (32, 781.0), (64, 553.0)];
    const PLATEAU_WITH_DIP: [(u32, f64); 9] = [
        (1, 277.0),
        (8, 1881.0),
        (16, 3455.0),
        (32, 3798.0),
        (64, 8120.0),
        (128, 11556.0),
        (256, 15552.0),
        (512, 18746.0),
        (1024, 18829.0),
    ];

    /// Straight lines between the points of a table; proportional below it, flat beyond.
    fn between(table: &[(u32, f64)], n: u32) -> f64 {
        let n = f64::from(n);
        let at = |i: usize| (f64::from(table[i].0), table[i].1);
        let (first, last) = (at(0), at(table.len() - 1));
        if n <= first.0 {
            return first.1 * n / first.0;
        }
        for i in 1..table.len() {
            let ((x0, y0), (x1, y1)) = (at(i - 1), at(i));
            if n <= x1 {
                return y0 + (y1 - y0) * (n - x0) / (x1 - x0);
            }
        }
        last.1
    }

    fn point(concurrency: u32, throughput: f64, half_width: Option<f64>) -> RungPoint {
        RungPoint { concurrency, throughput, half_width, success_rate: 1.0, refused_rate: 0.0 }
    }

    /// Runs the search against a server; returns the answer and the concurrencies measured, in order.
    fn search(config: &SearchConfig, mut server: impl FnMut(u32) -> RungPoint) -> (Answer, Vec<u32>) {
        let mut rungs: Vec<RungPoint> = Vec::new();
        loop {
            match next_step(config, &rungs).expect("a server that serves") {
                Step::Done(answer) => return (answer, rungs.iter().map(|rung| rung.concurrency).collect()),
                Step::Measure(n) => {
                    assert!(rungs.iter().all(|rung| rung.concurrency != n), "N = {n} twice");
                    assert!((1..=config.max_concurrency).contains(&n));
                    rungs.push(server(n));
                }
            }
        }
    }

    fn capped(max_concurrency: u32) -> SearchConfig {
        SearchConfig { max_concurrency, ..SearchConfig::default() }
    }

    #[test]
    fn a_curve_that_still_rises_is_not_given_a_knee() {
        let (answer, measured) = search(&capped(64), |n| point(n, between(&STILL_SCALING, n), Some(5.0)));
        assert_eq!((answer.verdict, answer.saturation, answer.peak), (Verdict::StillScaling, 64, 64));
        assert_eq!(measured, [1, 2, 4, 8, 16, 32, 64]);
    }

    #[test]
    fn a_fall_beyond_the_peak_is_told_from_a_plateau() {
        for cap in [64, 4096] {
            let (answer, _) = search(&capped(cap), |n| point(n, between(&RETROGRADE, n), None));
            assert_eq!((answer.verdict, answer.peak), (Verdict::Retrograde, 32), "cap {cap}");
            // 95% of 781 lies at N = 29.9 on the straight line.
            assert!((29..=31).contains(&answer.saturation), "{answer:?}");
        }
    }

    #[test]
    fn a_dip_on_the_way_up_does_not_end_the_ladder() {
        for cap in [1024, 4096] {
            let (answer, measured) = search(&capped(cap), |n| point(n, between(&PLATEAU_WITH_DIP, n), None));
            assert_eq!(answer.verdict, Verdict::Plateaued, "cap {cap}");
            // 95% of 18829 lies at N = 443 on the straight line.
            assert!((421..=465).contains(&answer.saturation), "{answer:?}");
            assert!(measured.len() <= 18, "{measured:?}");
        }
        // A real dip, below the rung before it, is one flat doubling and no more.
        let dipped = |n| if n == 32 { 3300.0 } else { between(&PLATEAU_WITH_DIP, n) };
        let (answer, _) = search(&capped(4096), |n| point(n, dipped(n), None));
        assert!((421..=465).contains(&answer.saturation), "{answer:?}");
    }

    #[test]
    fn noise_moves_the_answer_little() {
        let mut near = 0;
        const RUNS: u64 = 300;
        for seed in 0..RUNS {
            let mut rng = StdRng::seed_from_u64(seed);
            let knee = rng.random_range(3.0..300.0_f64);
            let noise = rng.random_range(0.002..0.01);
            let server = |n: u32| {
                // Linear up to the knee, flat beyond; the half-width is what a rung of ten batches would show.
                let truth = 50.0 * f64::from(n).min(knee);
                let error: f64 = (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
                point(n, truth * (1.0 + noise * error), Some(truth * noise * 2.26))
            };
            let (answer, measured) = search(&SearchConfig::default(), server);
            let truth = (0.95 * knee).ceil();
            let off = (f64::from(answer.saturation) - truth).abs();
            near += u64::from(answer.verdict == Verdict::Plateaued && off <= (0.1 * truth).max(1.0));
            assert!(answer.saturation_low <= answer.saturation, "seed {seed}: {answer:?}");
            assert!(answer.saturation_high >= answer.saturation, "seed {seed}: {answer:?}");
            assert!(measured.len() < 30, "seed {seed}: {measured:?}");
        }
        assert!(near >= RUNS * 95 / 100, "{near} of {RUNS} within 10%");
    }

    #[test]
    fn wide_intervals_do_not_drive_the_ladder_up_for_ever() {
        let server = |n: u32| point(n, 100.0 * f64::from(n.min(16)), Some(100.0 * f64::from(n.min(16)) * 0.2));
        let (answer, measured) = search(&SearchConfig::default(), server);
        assert_eq!((answer.verdict, answer.saturation), (Verdict::Plateaued, 16));
        assert!(measured.iter().all(|n| *n <= 64), "{measured:?}");
    }

    #[test]
    fn a_server_that_refuses_ends_the_ladder() {
        let server = |n: u32| {
            let refused_rate = if n > 24 { 0.5 } else { 0.0 };
            let success_rate = 1.0 - refused_rate;
            RungPoint { success_rate, refused_rate, ..point(n, 10.0 * f64::from(n.min(24)), None) }
        };
        let (answer, measured) = search(&SearchConfig::default(), server);
        assert_eq!((answer.verdict, answer.broken_at), (Verdict::AdmissionLimited, Some(32)));
        assert_eq!(answer.peak, 16);
        assert!(measured.iter().all(|n| *n <= 32), "{measured:?}");
    }

    #[test]
    fn a_server_that_breaks_ends_the_ladder() {
        let server = |n: u32| {
            let success_rate = if n >= 8 { 0.6 } else { 1.0 };
            RungPoint { success_rate, ..point(n, 10.0 * f64::from(n), None) }
        };
        let (answer, _) = search(&SearchConfig::default(), server);
        assert_eq!((answer.verdict, answer.broken_at, answer.peak), (Verdict::ServiceBroken, Some(8), 4));
    }

    #[test]
    fn a_server_that_serves_nothing_has_no_answer() {
        let dead = RungPoint { success_rate: 0.0, ..point(1, 0.0, None) };
        assert_eq!(next_step(&SearchConfig::default(), &[dead]), None);
        assert_eq!(answer_now(&SearchConfig::default(), &[dead]), None);
        let silent = point(1, 0.0, None);
        assert_eq!(next_step(&SearchConfig::default(), &[silent]), None);
    }

    #[test]
    fn out_of_time_keeps_what_was_measured() {
        let rungs = [point(1, 10.0, None), point(2, 20.0, None)];
        let answer = answer_now(&SearchConfig::default(), &rungs).expect("two rungs");
        assert_eq!((answer.verdict, answer.saturation, answer.peak), (Verdict::OutOfTime, 2, 2));
    }

    #[test]
    fn a_highest_concurrency_that_is_no_power_of_two_is_reached() {
        let (answer, measured) = search(&capped(20), |n| point(n, f64::from(n), None));
        assert_eq!((answer.verdict, answer.saturation), (Verdict::StillScaling, 20));
        assert_eq!(measured, [1, 2, 4, 8, 16, 20]);
        let (answer, measured) = search(&capped(1), |n| point(n, f64::from(n), None));
        assert_eq!((answer.verdict, measured), (Verdict::StillScaling, vec![1]));
    }
}
