//! Limits of latency that service is held to, and how many requests of a run kept within them.

use serde::{Deserialize, Serialize};

use crate::evidence;
use crate::record::{Outcome, RequestRecord};
use crate::window::Window;

/// LoadGen's confidence that a limit is kept.
pub(crate) const SLO_CONFIDENCE: f64 = 0.99;

/// Service level objectives. None of the limits: latency is not judged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Slo {
    /// Milliseconds to the first token, and between tokens.
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
    /// So many percent of the requests must keep each limit.
    pub percentile: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self { ttft_ms: None, tpot_ms: None, percentile: 99.0 }
    }
}

impl Slo {
    pub(crate) fn is_set(&self) -> bool {
        self.ttft_ms.is_some() || self.tpot_ms.is_some()
    }

    /// The share of requests that may be over a limit.
    pub(crate) fn violating_share(&self) -> f64 {
        1.0 - self.percentile / 100.0
    }
}

/// How the requests that were due in a window stood to the limits, whenever they ended: those that were served, and of
/// those that were cut off the ones whose first token came or is late by then. The time to the first token counts from
/// when a request was due: in a closed loop that is when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SloCounts {
    pub requests: u64,
    pub ttft_violations: u64,
    pub tpot_violations: u64,
    /// The most violations of one limit that would still show, by the early-stopping rule, that it is kept. None: there
    /// are too few requests to show it.
    pub allowed_violations: Option<u64>,
    /// Successful requests a second that kept every limit.
    pub goodput_per_s: f64,
}

impl SloCounts {
    /// Of all records of a run, over the window. None if there are no limits.
    pub(crate) fn new(slo: &Slo, records: &[RequestRecord], window: &Window) -> Option<Self> {
        if !slo.is_set() {
            return None;
        }
        let over = |limit: Option<f64>, seconds: f64| limit.is_some_and(|limit| seconds * 1e3 > limit);
        let late = |record: &RequestRecord| over(slo.ttft_ms, waited(record));
        let slow = |record: &RequestRecord| record.tpot().is_some_and(|tpot| over(slo.tpot_ms, tpot));
        let is_judged = |record: &&RequestRecord| {
            let is_known = record.is_success() || record.outcome == Outcome::Cut;
            window.contains(record.scheduled) && is_known && (record.first.is_some() || late(record))
        };
        let judged: Vec<&RequestRecord> = records.iter().filter(is_judged).collect();
        let count = |is: &dyn Fn(&RequestRecord) -> bool| judged.iter().filter(|record| is(record)).count() as u64;
        let requests = judged.len() as u64;
        let good = count(&|record| record.is_success() && !late(record) && !slow(record));
        Some(Self {
            requests,
            ttft_violations: count(&late),
            tpot_violations: count(&slow),
            allowed_violations: evidence::allowed_violations(requests, slo.violating_share(), SLO_CONFIDENCE),
            goodput_per_s: good as f64 / window.seconds(),
        })
    }
}

/// Seconds from when a request was due to its first token, or to its end where none came.
fn waited(record: &RequestRecord) -> f64 {
    record.first.unwrap_or(record.done).saturating_sub(record.scheduled).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::fixture::{failure, success};

    fn window(end: u64) -> Window {
        Window { start: Duration::ZERO, end: Duration::from_secs(end), steady: true }
    }

    #[test]
    fn a_request_counts_against_the_limit_that_it_broke() {
        // 0.1 s to the first token; 0.05 or 0.2 s a token after it.
        let records = [success(0.0, 0.1, 0.05, 10), success(0.0, 0.1, 0.2, 10), success(0.0, 0.9, 0.2, 10)];
        let slo = Slo { ttft_ms: Some(500.0), tpot_ms: Some(100.0), ..Slo::default() };
        let counts = SloCounts::new(&slo, &records, &window(2)).expect("limits");
        assert_eq!((counts.requests, counts.ttft_violations, counts.tpot_violations), (3, 1, 2));
        assert_eq!((counts.goodput_per_s, counts.allowed_violations), (0.5, None));
        assert_eq!(SloCounts::new(&Slo::default(), &records, &window(2)), None);
    }

    #[test]
    fn those_that_do_not_end_in_the_window_are_judged_too() {
        let slo = Slo { ttft_ms: Some(500.0), ..Slo::default() };
        let records = [
            success(0.5, 0.1, 0.1, 10),
            // Due in the window, served long after its end.
            success(1.0, 7.0, 0.1, 10),
            // Cut off: late already, with its first token in time, and too early to tell.
            failure(1.0, 3.0, Outcome::Cut),
            RequestRecord { outcome: Outcome::Cut, ..success(1.0, 0.2, 0.1, 5) },
            failure(1.9, 0.3, Outcome::Cut),
            // Due after the window, and one that failed, which another limit is for.
            success(2.5, 9.0, 0.1, 10),
            failure(1.0, 9.0, Outcome::Timeout),
        ];
        let counts = SloCounts::new(&slo, &records, &window(2)).expect("a limit");
        assert_eq!((counts.requests, counts.ttft_violations, counts.tpot_violations), (4, 2, 0));
        assert_eq!(counts.goodput_per_s, 0.5, "what was cut off is no good request");
    }
}
