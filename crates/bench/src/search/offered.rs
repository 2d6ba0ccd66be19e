//! The open-loop confirmation: arrivals that do not wait for the server, at shares of the throughput that the closed
//! loop found, and the highest rate at which service holds.

use serde::{Deserialize, Serialize};

use super::SearchConfig;

/// Where the lowest share that is asked for does not hold, these are tried, one after another.
const LOWER_SHARES: [f64; 3] = [0.5, 0.35, 0.25];
/// The highest share that holds and the lowest that does not are offered again, and the majority counts.
const REPLICATES: usize = 3;
/// Fewer bad requests than this are stragglers.
const LEAST_BAD: u64 = 2;

/// One open-loop run, as far as the search looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OfferedPoint {
    /// Of the highest throughput.
    pub share: f64,
    /// Requests a second that were offered.
    pub rate: f64,
    /// As in [`RungPoint`](super::RungPoint); latencies count from when a request was due.
    pub requests: u64,
    pub failed: u64,
    pub slo_requests: u64,
    pub ttft_violations: u64,
    pub tpot_violations: u64,
    /// The number of requests in flight did not grow for as long as the run lasted.
    pub keeps_up: bool,
}

/// Why a rate does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OpenLoopFault {
    /// Requests fail, or were dropped.
    Success,
    Ttft,
    Tpot,
    /// Ever more requests are in flight.
    Backlog,
}

/// What became of arrivals that do not wait.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OpenLoopAnswer {
    /// Requests a second that the highest throughput of the closed loop comes to.
    pub max_rate: f64,
    /// The highest rate offered at which service held with a flat number of requests in flight, and at every lower one
    /// as well. None: it held at none.
    pub holds_rate: Option<f64>,
    /// The lowest rate offered at which it did not, and why. None: it held at all.
    pub fails_rate: Option<f64>,
    pub fault: Option<OpenLoopFault>,
}

/// What was offered so far.
pub(super) struct Offers<'a> {
    config: &'a SearchConfig,
    /// Requests a second.
    pub(super) max_rate: f64,
    offered: &'a [OfferedPoint],
}

impl<'a> Offers<'a> {
    pub(super) fn new(config: &'a SearchConfig, max_rate: f64, offered: &'a [OfferedPoint]) -> Self {
        Self { config, max_rate, offered }
    }

    /// The share to offer next: first all that are asked for, ascending; then the lowest that fails and the highest that
    /// holds below it again, until both are sure; then lower ones until one holds.
    pub(super) fn next(&self) -> Option<f64> {
        if self.max_rate <= 0.0 {
            return None;
        }
        let is_new = |share: &f64| self.at(*share).next().is_none();
        if let Some(share) = self.config.offered_shares.iter().copied().find(is_new) {
            return Some(share);
        }
        let shares = self.shares();
        let at = shares.iter().position(|share| !self.holds(*share) || self.is_split(*share));
        let failing = at.map(|at| shares[at]);
        let holding = at.unwrap_or(shares.len()).checked_sub(1).map(|at| shares[at]);
        if let Some(doubted) = failing.into_iter().chain(holding).find(|share| !self.is_sure(*share)) {
            return Some(doubted);
        }
        let lowest = failing.filter(|_| holding.is_none())?;
        LOWER_SHARES.into_iter().find(|share| *share < lowest)
    }

    pub(super) fn answer(&self) -> Option<OpenLoopAnswer> {
        let shares = self.shares();
        let failing = shares.iter().position(|share| !self.holds(*share));
        let fails = failing.map(|at| shares[at]);
        let holds = failing.unwrap_or(shares.len()).checked_sub(1).map(|at| shares[at]);
        let faults = self.offered.iter().filter(|point| Some(point.share) == fails);
        (!shares.is_empty()).then(|| OpenLoopAnswer {
            max_rate: self.max_rate,
            holds_rate: holds.map(|share| share * self.max_rate),
            fails_rate: fails.map(|share| share * self.max_rate),
            fault: faults.filter_map(|point| self.fault(point)).next(),
        })
    }

    /// Those that were offered, ascending.
    fn shares(&self) -> Vec<f64> {
        let mut shares: Vec<f64> = self.offered.iter().map(|point| point.share).collect();
        shares.sort_unstable_by(f64::total_cmp);
        shares.dedup();
        shares
    }

    fn at(&self, share: f64) -> impl Iterator<Item = &OfferedPoint> {
        self.offered.iter().filter(move |point| point.share == share)
    }

    /// How often a share was offered, and how often service did not hold.
    fn counts(&self, share: f64) -> (usize, usize) {
        (self.at(share).count(), self.at(share).filter(|point| self.fault(point).is_some()).count())
    }

    fn holds(&self, share: f64) -> bool {
        let (offered, failed) = self.counts(share);
        failed * 2 <= offered && !(offered == 1 && failed == 1)
    }

    fn is_split(&self, share: f64) -> bool {
        let (offered, failed) = self.counts(share);
        failed * 2 == offered && failed > 0
    }

    fn is_sure(&self, share: f64) -> bool {
        let (offered, failed) = self.counts(share);
        failed > REPLICATES / 2 || offered - failed > REPLICATES / 2 || offered >= REPLICATES
    }

    fn fault(&self, point: &OfferedPoint) -> Option<OpenLoopFault> {
        let slo = &self.config.slo;
        let over = |bad: u64, of: u64, limit: f64| bad >= LEAST_BAD && bad as f64 > limit * of as f64;
        let late = |limit: Option<f64>, bad| limit.is_some() && over(bad, point.slo_requests, slo.violating_share());
        if over(point.failed, point.requests, 1.0 - self.config.success_floor) {
            Some(OpenLoopFault::Success)
        } else if !point.keeps_up {
            Some(OpenLoopFault::Backlog)
        } else if late(slo.ttft_ms, point.ttft_violations) {
            Some(OpenLoopFault::Ttft)
        } else if late(slo.tpot_ms, point.tpot_violations) {
            Some(OpenLoopFault::Tpot)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offers until nothing is left to offer; `server` says for each share and time of asking whether it keeps up.
    fn offer(server: impl Fn(f64, usize) -> bool) -> (OpenLoopAnswer, Vec<f64>) {
        let config = SearchConfig { slo: crate::Slo::default(), ..SearchConfig::default() };
        let mut offered: Vec<OfferedPoint> = Vec::new();
        while let Some(share) = Offers::new(&config, 10.0, &offered).next() {
            let before = offered.iter().filter(|point| point.share == share).count();
            assert!(offered.len() < 30, "no end: {offered:?}");
            let keeps_up = server(share, before);
            offered.push(OfferedPoint { share, rate: 10.0 * share, requests: 100, keeps_up, ..Default::default() });
        }
        let answer = Offers::new(&config, 10.0, &offered).answer().expect("offers");
        (answer, offered.iter().map(|point| point.share).collect())
    }

    #[test]
    fn the_highest_rate_that_holds_is_found() {
        let (answer, offered) = offer(|share, _| share < 0.95);
        assert_eq!((answer.holds_rate, answer.fails_rate), (Some(9.0), Some(10.0)));
        assert_eq!(answer.fault, Some(OpenLoopFault::Backlog));
        assert_eq!(offered, [0.7, 0.8, 0.9, 1.0, 1.05, 1.0, 0.9], "both ends are tried twice");
        let (answer, offered) = offer(|_, _| true);
        assert_eq!((answer.holds_rate, answer.fails_rate, offered.len()), (Some(10.5), None, 6));
    }

    #[test]
    fn luck_is_not_believed() {
        let (answer, _) = offer(|share, before| share < 0.95 || before == 0);
        assert_eq!((answer.holds_rate, answer.fails_rate), (Some(9.0), Some(10.0)));
    }

    #[test]
    fn a_hiccup_is_not_believed() {
        let (answer, offered) = offer(|share, before| share < 0.95 && !(share == 0.8 && before == 0));
        assert_eq!((answer.holds_rate, answer.fails_rate), (Some(9.0), Some(10.0)));
        assert_eq!(offered.iter().filter(|share| **share == 0.8).count(), 3);
    }

    #[test]
    fn where_nothing_holds_lower_rates_are_tried() {
        let (answer, _) = offer(|share, _| share < 0.4);
        assert_eq!((answer.holds_rate, answer.fails_rate), (Some(3.5), Some(5.0)));
        let (answer, offered) = offer(|_, _| false);
        assert_eq!((answer.holds_rate, answer.fails_rate), (None, Some(2.5)));
        assert!(offered.len() <= 15, "{offered:?}");
    }

    #[test]
    fn failures_count_and_stragglers_do_not() {
        let config = SearchConfig { offered_shares: vec![0.7], ..SearchConfig::default() };
        let fault = |failed| {
            let point = OfferedPoint { share: 0.7, requests: 50, failed, keeps_up: true, ..Default::default() };
            Offers::new(&config, 10.0, &[]).fault(&point)
        };
        assert_eq!((fault(1), fault(2)), (None, Some(OpenLoopFault::Success)));
    }
}
