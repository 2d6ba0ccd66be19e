//! Which part of a run is steady: every client at work, the transient over, nobody idle yet.
//!
//! Measuring over the whole run counts the ramp at its start and, at its end, the time in which ever fewer requests are
//! in flight; counting requests at their completion lets the last of them bring in tokens from before the window.
//! Here the window ends when the first client finds no more work, and tokens count when they came.

use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::load::RunLog;
use crate::record::RequestRecord;
use crate::stats;

/// Slices of the span in which a transient is looked for.
const SLICES: usize = 100;
/// A window is trusted to be steady if at least so many requests for each client completed in it; in an open loop, for
/// each that was in flight on average.
const MIN_COMPLETIONS_PER_CLIENT: f64 = 2.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Window {
    pub(crate) start: Duration,
    pub(crate) end: Duration,
    /// False: the run was too short to have a steady part, and this is all of it.
    pub(crate) steady: bool,
}

impl Window {
    pub(crate) fn seconds(&self) -> f64 {
        (self.end - self.start).as_secs_f64()
    }

    pub(crate) fn contains(&self, at: Duration) -> bool {
        (self.start..self.end).contains(&at)
    }
}

/// From the end of the transient to the end of the load, long enough to be steady or not: all of it that the drain, in
/// which ever less is in flight whatever the server does, has no part in. None: the load ended before all had begun.
pub(crate) fn loaded_window(log: &RunLog) -> Option<Window> {
    if log.first_idle <= log.ramp_end {
        return None;
    }
    let busy = Window { start: log.ramp_end, end: log.first_idle, steady: false };
    let rates = output_rates(log, &busy, SLICES);
    let slice = (busy.end - busy.start) / SLICES as u32;
    Some(Window { start: busy.start + slice * stats::transient(&rates) as u32, ..busy })
}

/// The steady window of a run, or all of it.
pub(crate) fn steady_window(log: &RunLog) -> Window {
    let Some(window) = loaded_window(log) else { return whole_run(log) };
    let completed = log.records.iter().filter(|record| window.contains(record.done)).count();
    let clients = match log.arrivals {
        Arrivals::Closed => log.concurrency.into(),
        _ => mean_in_flight(log, &window),
    };
    match completed as f64 >= MIN_COMPLETIONS_PER_CLIENT * clients {
        true => Window { steady: true, ..window },
        false => whole_run(log),
    }
}

/// Requests in flight on average over the window: the time that each spent in it.
pub(crate) fn mean_in_flight(log: &RunLog, window: &Window) -> f64 {
    let inside = |record: &RequestRecord| {
        let (from, to) = (record.scheduled.max(window.start), record.done.min(window.end));
        to.saturating_sub(from).as_secs_f64()
    };
    log.records.iter().map(inside).sum::<f64>() / window.seconds()
}

/// From the first request to the end of the last.
pub(crate) fn whole_run(log: &RunLog) -> Window {
    // One nanosecond more, so that a window, which excludes its end, holds the last event.
    Window { start: Duration::ZERO, end: log.ended + Duration::from_nanos(1), steady: false }
}

/// Output tokens a second of the successes in each of `slices` equal parts of the window, by when they came.
pub(crate) fn output_rates(log: &RunLog, window: &Window, slices: usize) -> Vec<f64> {
    let width = window.seconds() / slices as f64;
    let mut rates = vec![0.0; slices];
    for record in log.records.iter().filter(|record| record.is_served()) {
        for (at, tokens) in record.emissions().filter(|(at, _)| window.contains(*at)) {
            let slice = ((at - window.start).as_secs_f64() / width) as usize;
            rates[slice.min(slices - 1)] += tokens / width;
        }
    }
    rates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::success;

    /// Two clients, each with requests of one second and ten tokens one after another, for `rounds` rounds; then one
    /// straggler of ten seconds.
    fn log(rounds: u32) -> RunLog {
        let mut records: Vec<_> = (0..rounds)
            .flat_map(|i| [success(i.into(), 0.1, 0.1, 10), success(f64::from(i) + 0.05, 0.1, 0.1, 10)])
            .collect();
        records.push(success(rounds.into(), 0.1, 1.0, 10));
        let end = f64::from(rounds);
        let (ramp_end, first_idle) = (Duration::from_millis(50), Duration::from_secs_f64(end + 0.05));
        RunLog { ended: Duration::from_secs_f64(end + 9.1), ..RunLog::of(2, records, ramp_end, first_idle) }
    }

    #[test]
    fn the_drain_is_outside() {
        let log = log(20);
        let window = steady_window(&log);
        assert!(window.steady);
        assert_eq!(window.end, log.first_idle);
        let rates = output_rates(&log, &window, 10);
        let rate = stats::mean(&rates).expect("ten slices");
        assert!((rate - 20.0).abs() < 0.6, "{rate} tokens a second by emission, 20 in truth");
        let whole = output_rates(&log, &whole_run(&log), 10);
        assert!(stats::mean(&whole).expect("ten slices") < 15.0, "the straggler drags the whole run down");
    }

    #[test]
    fn a_run_without_a_steady_part_is_taken_whole_and_says_so() {
        let log = log(1);
        let window = steady_window(&log);
        assert!(!window.steady);
        assert_eq!(window, whole_run(&log));
        assert!(log.records.iter().all(|record| window.contains(record.done)));
    }
}
