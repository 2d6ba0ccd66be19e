//! Limits of latency that service is held to, and how many requests of a run kept within them.

use serde::{Deserialize, Serialize};

use crate::evidence;
use crate::record::RequestRecord;

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

/// How the successful requests of a window stood to the limits. The time to the first token counts from when a request
/// was due: in a closed loop that is when it was sent.
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
    /// None if there are no limits.
    pub(crate) fn new(slo: &Slo, good: &[&RequestRecord], seconds: f64) -> Option<Self> {
        if !slo.is_set() {
            return None;
        }
        let over = |limit: Option<f64>, seconds: Option<f64>| {
            limit.zip(seconds).is_some_and(|(limit, seconds)| seconds * 1e3 > limit)
        };
        let late =
            |record: &RequestRecord| over(slo.ttft_ms, record.ttft_from_schedule().map(|ttft| ttft.as_secs_f64()));
        let slow = |record: &RequestRecord| over(slo.tpot_ms, record.tpot());
        let count = |bad: &dyn Fn(&RequestRecord) -> bool| good.iter().filter(|record| bad(record)).count() as u64;
        let requests = good.len() as u64;
        let either = count(&|record| late(record) || slow(record));
        Some(Self {
            requests,
            ttft_violations: count(&late),
            tpot_violations: count(&slow),
            allowed_violations: evidence::allowed_violations(requests, slo.violating_share(), SLO_CONFIDENCE),
            goodput_per_s: (requests - either) as f64 / seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::success;

    #[test]
    fn a_request_counts_against_the_limit_that_it_broke() {
        // 0.1 s to the first token; 0.05 or 0.2 s a token after it.
        let records = [success(0.0, 0.1, 0.05, 10), success(0.0, 0.1, 0.2, 10), success(0.0, 0.9, 0.2, 10)];
        let good: Vec<&RequestRecord> = records.iter().collect();
        let slo = Slo { ttft_ms: Some(500.0), tpot_ms: Some(100.0), ..Slo::default() };
        let counts = SloCounts::new(&slo, &good, 2.0).expect("limits");
        assert_eq!((counts.requests, counts.ttft_violations, counts.tpot_violations), (3, 1, 2));
        assert_eq!((counts.goodput_per_s, counts.allowed_violations), (0.5, None));
        assert_eq!(SloCounts::new(&Slo::default(), &good, 2.0), None);
    }
}
