//! Whether the server was the same at the end of the search as before: a machine that grew hot, a neighbour that came,
//! memory that leaked. Then the rungs were not measured on one server, and the answer is of none.

use serde::{Deserialize, Serialize};

use super::RungPoint;
use super::rungs::{Rung, Rungs, half_width};

/// A change of throughput up to this share is none.
const TOLERATED: f64 = 0.03;
/// Makes 99% intervals of the 95% ones: two looks at 95% would call one run in ten invalid that is not.
const SURER: f64 = 1.3;

/// Two concurrencies measured once more at the end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Drift {
    pub at_one: Recheck,
    /// None if saturation is at a concurrency of 1, or there was no time for it.
    pub at_saturation: Option<Recheck>,
}

impl Drift {
    /// Whether the whole result is invalid.
    pub fn invalidates(&self) -> bool {
        self.at_one.has_changed || self.at_saturation.is_some_and(|recheck| recheck.has_changed)
    }
}

/// One concurrency, before and at the end. Output tokens a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Recheck {
    pub concurrency: u32,
    pub before: f64,
    pub before_half_width: Option<f64>,
    pub after: f64,
    pub after_half_width: Option<f64>,
    /// Share of `before` by which throughput is higher now; negative where it is lower.
    pub change: f64,
    /// More than 3%, and more than both measurements' 99% intervals explain, each time it was measured.
    pub has_changed: bool,
}

impl Recheck {
    /// None if `after` holds no measurement at that concurrency.
    fn new(before: &Rung, after: &[RungPoint]) -> Option<Self> {
        let after: Vec<RungPoint> = after.iter().filter(|point| point.concurrency == before.n()).copied().collect();
        let pooled = Rung::pooled(after.clone(), |_| Vec::new())?;
        let change = |now: f64| now / before.throughput() - 1.0;
        let is_beyond = |point: &RungPoint| {
            let explained = SURER * before.half_width().hypot(half_width(point));
            let difference = point.throughput - before.throughput();
            difference.abs() > explained && change(point.throughput).abs() > TOLERATED
        };
        Some(Self {
            concurrency: before.n(),
            before: before.throughput(),
            before_half_width: before.point.half_width,
            after: pooled.throughput(),
            after_half_width: pooled.point.half_width,
            change: change(pooled.throughput()),
            has_changed: after.iter().all(is_beyond),
        })
    }
}

impl Rungs<'_> {
    /// The next concurrency to measure once more: N = 1, then the saturation point; one that seems to have changed a
    /// second time, for it may have been a moment's doing.
    pub(super) fn next_recheck(&self, rechecks: &[RungPoint]) -> Option<u32> {
        if !self.config.check_drift {
            return None;
        }
        let count = |n: u32| rechecks.iter().filter(|point| point.concurrency == n).count();
        let again = |rung: &&Rung| match Recheck::new(rung, rechecks) {
            None => true,
            Some(recheck) => recheck.has_changed && count(rung.n()) < 2,
        };
        self.rechecked().find(again).map(Rung::n)
    }

    pub(super) fn drift(&self, rechecks: &[RungPoint]) -> Option<Drift> {
        let mut found = self.rechecked().map(|rung| Recheck::new(rung, rechecks));
        Some(Drift { at_one: found.next()??, at_saturation: found.next().flatten() })
    }

    fn rechecked(&self) -> impl Iterator<Item = &Rung> {
        let saturation = self.saturation().map(|found| found.at).filter(|at| *at > 1);
        [Some(1), saturation].into_iter().flatten().filter_map(|n| self.serving().iter().find(|rung| rung.n() == n))
    }
}
