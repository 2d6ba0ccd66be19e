//! Where service breaks: requests fail, are refused, or come later than the limits allow.

use serde::{Deserialize, Serialize};

use super::rungs::{Rung, Rungs, SUCCESS_CONFIDENCE};
use super::{RungPoint, SearchConfig};
use crate::evidence::{Shown, shown};
use crate::slo::SLO_CONFIDENCE;

/// What is lost from the last concurrency that passes to the first that fails makes a cliff if it is more than this.
const CLIFF: f64 = 0.1;

/// What service fails by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Requests fail.
    Success,
    /// Requests are refused with 429 or 503.
    Refused,
    /// Too many first tokens come too late.
    Ttft,
    /// Too many replies are too slow.
    Tpot,
}

/// How service goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Fall {
    /// Little is lost at the first concurrency that fails.
    Smooth,
    /// More than a tenth of the throughput or of the good requests is lost within one step of the bisection.
    Cliff,
}

/// Where service breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Breakpoint {
    /// The greatest concurrency that keeps every limit; 0 if none does.
    pub last_pass: u32,
    /// The smallest beyond it that does not.
    pub first_fail: u32,
    /// The greatest concurrency that is shown to keep every limit, and the smallest that is shown to break one: between
    /// them lies the breakpoint, by the tests' confidence. None: no rung had enough requests to show it.
    pub shown_pass: Option<u32>,
    pub shown_fail: Option<u32>,
    /// What binds at `first_fail`.
    pub constraint: Constraint,
    /// None if nothing passes, or the two are too far apart to tell.
    pub fall: Option<Fall>,
}

/// How a rung stands to the limits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// All are shown to be kept.
    Passes,
    /// All are kept as far as can be seen.
    Holds,
    /// One is broken as far as can be seen, which is not shown.
    Doubtful(Constraint),
    /// One is shown to be broken.
    Fails(Constraint),
}

/// How many requests broke one limit.
struct Count {
    constraint: Constraint,
    bad: u64,
    of: u64,
    /// The share that may.
    limit: f64,
    confidence: f64,
}

impl Count {
    fn shown(&self) -> Shown {
        shown(self.bad, self.of, self.limit, self.confidence)
    }

    fn share(&self) -> f64 {
        if self.of == 0 { 0.0 } else { self.bad as f64 / self.of as f64 }
    }

    /// How many times what may be.
    fn excess(&self) -> f64 {
        self.share() / self.limit
    }
}

impl Rungs<'_> {
    /// Whether some rung is shown to break a limit.
    pub(super) fn has_failed(&self) -> bool {
        self.all.iter().any(|rung| matches!(self.state(rung), State::Fails(_)))
    }

    /// The greatest concurrency at which service held.
    pub(super) fn holds_at(&self) -> u32 {
        self.last_holding().map_or(0, |at| self.all[at].n())
    }

    /// The next concurrency to measure for the breakpoint: first in between, then the two ends again until it is shown
    /// that they are that, or there are replicates enough. Throughput says nothing about it.
    pub(super) fn toward_breakpoint(&self) -> Option<u32> {
        let (low, high) = self.bracket()?;
        if let Some(middle) = self.middle(low.map_or(0, Rung::n), high.n()) {
            return Some(middle);
        }
        let open = |rung: &&Rung| matches!(self.state(rung), State::Holds | State::Doubtful(_));
        let again =
            |rung: &&Rung| (open(rung) || rung.is_doubtful_failure()) && rung.replicates() < self.config.replicates;
        low.into_iter().chain([high]).find(again).map(Rung::n)
    }

    pub(super) fn breakpoint(&self) -> Option<Breakpoint> {
        let (low, high) = self.bracket()?;
        let (State::Doubtful(constraint) | State::Fails(constraint)) = self.state(high) else { return None };
        let last_pass = low.map_or(0, Rung::n);
        let near = self.middle(last_pass, high.n()).is_none();
        let passes = |rung: &&Rung| self.state(rung) == State::Passes && rung.n() <= last_pass;
        let fails = |rung: &&Rung| matches!(self.state(rung), State::Fails(_)) && rung.n() >= high.n();
        Some(Breakpoint {
            last_pass,
            first_fail: high.n(),
            shown_pass: self.all.iter().rev().find(passes).map(Rung::n),
            shown_fail: self.all.iter().find(fails).map(Rung::n),
            constraint,
            fall: low.filter(|_| near).map(|low| self.fall(low, high)),
        })
    }

    /// The last rung that holds below the first that is shown to fail, and the one after it. A rung that merely looks
    /// bad is no failure while a higher one holds: with few requests one straggler looks bad.
    fn bracket(&self) -> Option<(Option<&Rung>, &Rung)> {
        let low = self.last_holding();
        let high = self.all.get(low.map_or(0, |at| at + 1))?;
        Some((low.map(|at| &self.all[at]), high))
    }

    fn last_holding(&self) -> Option<usize> {
        let failing = self.all.iter().position(|rung| matches!(self.state(rung), State::Fails(_)));
        let below = &self.all[..failing.unwrap_or(self.all.len())];
        below.iter().rposition(|rung| matches!(self.state(rung), State::Passes | State::Holds))
    }

    fn state(&self, rung: &Rung) -> State {
        let counts = counts(self.config, &rung.point);
        if rung.throughput() <= 0.0 {
            return State::Fails(counts[0].constraint);
        }
        let worst = |of: &dyn Fn(&&Count) -> bool| {
            counts.iter().filter(of).max_by(|a, b| a.excess().total_cmp(&b.excess())).map(|count| count.constraint)
        };
        if let Some(constraint) = worst(&|count| count.shown() == Shown::Beyond) {
            return State::Fails(constraint);
        }
        if let Some(constraint) = worst(&|count| count.excess() > 1.0) {
            return State::Doubtful(constraint);
        }
        if counts.iter().all(|count| count.shown() == Shown::Within) { State::Passes } else { State::Holds }
    }

    /// Whether it is shown to break a limit that a higher one is shown to keep.
    pub(super) fn is_contradicted(&self, rung: &Rung) -> bool {
        let State::Fails(broken) = self.state(rung) else { return false };
        let keeps = |count: &Count| count.constraint == broken && count.shown() == Shown::Within;
        let above = self.all.iter().filter(|higher| higher.n() > rung.n());
        above.into_iter().any(|higher| counts(self.config, &higher.point).iter().any(keeps))
    }

    fn fall(&self, low: &Rung, high: &Rung) -> Fall {
        let bad = |rung: &Rung| counts(self.config, &rung.point).iter().map(Count::share).fold(0.0, f64::max);
        let lost = 1.0 - high.throughput() / low.throughput();
        if lost > CLIFF || bad(high) - bad(low) > CLIFF { Fall::Cliff } else { Fall::Smooth }
    }
}

fn counts(config: &SearchConfig, point: &RungPoint) -> Vec<Count> {
    let slo = &config.slo;
    let refused = point.refused > 0 && point.refused * 2 >= point.failed;
    let mut counts = vec![Count {
        constraint: if refused { Constraint::Refused } else { Constraint::Success },
        bad: point.failed,
        of: point.requests,
        limit: 1.0 - config.success_floor,
        confidence: SUCCESS_CONFIDENCE,
    }];
    let late = |constraint, bad| Count {
        constraint,
        bad,
        of: point.slo_requests,
        limit: slo.violating_share(),
        confidence: SLO_CONFIDENCE,
    };
    counts.extend(slo.ttft_ms.map(|_| late(Constraint::Ttft, point.ttft_violations)));
    counts.extend(slo.tpot_ms.map(|_| late(Constraint::Tpot, point.tpot_violations)));
    counts
}

/// The limits that one measurement by itself is shown to break.
pub(super) fn shown_broken(config: &SearchConfig, point: &RungPoint) -> Vec<Constraint> {
    let counts = counts(config, point);
    let broken: Vec<Constraint> =
        counts.iter().filter(|count| count.shown() == Shown::Beyond).map(|count| count.constraint).collect();
    if broken.is_empty() && point.throughput <= 0.0 { vec![counts[0].constraint] } else { broken }
}
