//! Whether a server keeps up with arrivals that do not wait for it: the number of requests in flight tells. Where it
//! grows for as long as the run lasts, latencies say only how long that was.
//!
//! It must never read a clock: all of it comes from the records.

use serde::{Deserialize, Serialize};

use crate::arrivals::Arrivals;
use crate::load::RunLog;
use crate::series;
use crate::stats;
use crate::window::{self, Window};

/// Points at which requests in flight are counted.
const SLICES: usize = 200;
/// Growth over the window that is small against the mean is no overload, however sure it is.
const TOLERATED_GROWTH: f64 = 0.25;
/// The number in flight of a server that just keeps up wanders as arrivals and departures chance to: by about the square
/// root of the arrivals. Growth within so many of that is no overload either.
const TOLERATED_SWINGS: f64 = 1.5;

/// What an open loop offered, and what became of it. Over the measured window; the growth over as much of it as lies
/// before the end of the arrivals.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OpenLoopFacts {
    pub arrivals: Arrivals,
    /// Requests a second that were due.
    pub offered_per_s: f64,
    /// Requests that were due and not over: on average, and the most.
    pub in_flight_mean: f64,
    pub in_flight_max: u32,
    /// None: too short to tell.
    pub growth: Option<InFlightGrowth>,
}

/// How the number of requests in flight changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InFlightGrowth {
    /// Requests a second, by least squares, and the 95% half-width.
    pub per_s: f64,
    pub half_width: f64,
    /// False: over the window it grew beyond its confidence, by more than a quarter of its mean, and by more than chance
    /// arrivals explain.
    pub is_flat: bool,
}

/// None for a closed loop.
pub(crate) fn facts(log: &RunLog, window: &Window) -> Option<OpenLoopFacts> {
    if log.arrivals == Arrivals::Closed || window.seconds() <= 0.0 {
        return None;
    }
    let due = log.records.iter().filter(|record| window.contains(record.scheduled)).count();
    Some(OpenLoopFacts {
        arrivals: log.arrivals,
        offered_per_s: due as f64 / window.seconds(),
        in_flight_mean: window::mean_in_flight(log, window),
        in_flight_max: series::in_flight(log, window, SLICES).into_iter().max().unwrap_or(0),
        growth: window::loaded_window(log).and_then(|loaded| growth(log, &loaded)),
    })
}

fn growth(log: &RunLog, loaded: &Window) -> Option<InFlightGrowth> {
    let arrived = log.records.iter().filter(|record| loaded.contains(record.scheduled)).count();
    let counts: Vec<f64> = series::in_flight(log, loaded, SLICES).into_iter().map(f64::from).collect();
    InFlightGrowth::of(&counts, arrived as u64, loaded.seconds())
}

impl InFlightGrowth {
    /// Of counts at even distances, over so many seconds in which so many requests arrived. None: they are too few to
    /// tell.
    pub fn of(counts: &[f64], arrived: u64, seconds: f64) -> Option<Self> {
        let (slope, half_width) = stats::slope(counts)?;
        let mean = stats::mean(counts)?;
        let slices_a_second = counts.len() as f64 / seconds;
        let by = slope * counts.len() as f64;
        let by_chance = TOLERATED_SWINGS * (arrived as f64).sqrt();
        let grows = slope - half_width > 0.0 && by > by_chance.max(TOLERATED_GROWTH * mean);
        Some(Self { per_s: slope * slices_a_second, half_width: half_width * slices_a_second, is_flat: !grows })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::arrivals::Schedule;
    use crate::record::fixture::success;

    /// Requests that arrive at `rate` a second for 100 s at a server that ends `capacity` a second in turn, each of
    /// which takes a second at least.
    fn log(rate: f64, capacity: f64, seed: u64) -> RunLog {
        let arrivals = Arrivals::Poisson { rate };
        let end = Duration::from_secs(100);
        let mut free = 0.0_f64;
        let records: Vec<_> = Schedule::new(arrivals, seed, end, &[])
            .take_while(|at| *at < end)
            .map(|at| {
                free = free.max(at.as_secs_f64()) + 1.0 / capacity;
                let mut record = success(at.as_secs_f64(), 0.5, 0.05, 11);
                record.done = Duration::from_secs_f64(free + 1.0);
                record
            })
            .collect();
        let ended = records.iter().map(|record| record.done).max().expect("arrivals");
        RunLog { ended, arrivals, ..RunLog::of(4096, records, Duration::ZERO, end) }
    }

    fn is_flat(rate: f64, seed: u64) -> bool {
        let log = log(rate, 50.0, seed);
        let window = Window { start: Duration::from_secs(10), end: Duration::from_secs(100), steady: true };
        let facts = facts(&log, &window).expect("an open loop");
        assert!((facts.offered_per_s - rate).abs() < 0.1 * rate, "{facts:?}");
        facts.growth.expect("two hundred slices").is_flat
    }

    #[test]
    fn a_queue_that_grows_is_told_from_one_that_swings() {
        let flat = |rate| (0..50).filter(|seed| is_flat(rate, *seed)).count();
        assert!(flat(35.0) >= 48, "{} of 50 at 70%", flat(35.0));
        assert!(flat(45.0) >= 45, "{} of 50 at 90%", flat(45.0));
        assert!(flat(65.0) <= 1, "{} of 50 at 130%", flat(65.0));
    }

    /// Each reply takes 80 s, so that the run is as much drain as load: what comes to be in flight goes away again.
    #[test]
    fn the_drain_does_not_hide_a_backlog() {
        let mut log = log(65.0, 50.0, 1);
        log.records.iter_mut().for_each(|record| record.done += Duration::from_secs(80));
        log.ended += Duration::from_secs(80);
        let whole = window::whole_run(&log);
        let with_drain = growth(&log, &whole).expect("two hundred slices");
        assert!(with_drain.is_flat, "{with_drain:?}: so the drain would hide it");
        let facts = facts(&log, &whole).expect("an open loop");
        assert!(!facts.growth.expect("two hundred slices").is_flat, "{facts:?}");
    }

    #[test]
    fn a_closed_loop_has_no_such_facts() {
        let log = RunLog { arrivals: Arrivals::Closed, ..log(10.0, 50.0, 1) };
        assert_eq!(facts(&log, &window::whole_run(&log)), None);
    }
}
