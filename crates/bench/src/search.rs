//! The saturation search: which concurrency to measure next, and what the measurements say.
//!
//! A pure function of the rungs measured so far. It must never know how a rung is measured.
//!
//! First a ladder, N = 1, 2, 4 ..., until two doublings in a row each gain less than 5% (by the upper end of their
//! confidence intervals, where rungs have one), or service breaks, or the highest concurrency is reached. Then a
//! bisection for the saturation point: the smallest N with at least 95% of the highest throughput. One flat or falling
//! doubling is not enough to stop, because throughput can dip and go on rising.
//!
//! Then the ladder goes on until a rung is shown to fail its requests or its latency limits, and a second bisection
//! closes in on the breakpoint, whose two ends are measured again until enough requests show what they are. What a
//! rung far up the ladder tells about throughput is taken into account for the saturation point, too. A rung that fails
//! is measured again before that is believed: what does not repeat was the machine's, not the server's.
//!
//! What was found in a closed loop is then held against arrivals that do not wait (`offered`), and at the very end two
//! concurrencies are measured once more, to see whether the server is still what it was (`drift`).

mod breakpoint;
mod drift;
mod offered;
mod plateau;
mod rungs;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::breakpoint::{Breakpoint, Constraint, Fall};
pub use self::drift::{Drift, Recheck};
use self::offered::Offers;
pub use self::offered::{OfferedPoint, OpenLoopAnswer, OpenLoopFault};
use self::rungs::{Rung, Rungs};
use crate::slo::Slo;

/// What the search is to find, and how far it may go.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SearchConfig {
    pub max_concurrency: u32,
    /// A doubling that gains less than this share is flat.
    pub flat_gain: f64,
    /// So many flat doublings in a row are a plateau.
    pub flat_doublings: u32,
    /// The saturation point is the smallest concurrency with this share of the highest throughput.
    pub saturation_share: f64,
    /// A bisection stops at an interval of this share of its upper end.
    pub resolution: f64,
    /// Service is broken where the share of successes is below this; such a rung's throughput does not count.
    pub success_floor: f64,
    /// Service is broken where one of these limits is. Throughput beyond still counts.
    pub slo: Slo,
    /// Go on behind the plateau until service breaks.
    pub find_breakpoint: bool,
    /// An end of the breakpoint's interval that is in doubt, and a rung that failed, is measured so many times in all.
    pub replicates: u32,
    /// Shares of the highest throughput that are offered as Poisson arrivals, ascending. Empty: none are.
    #[serde(default)]
    pub offered_shares: Vec<f64>,
    /// Measure N = 1 and the saturation point once more at the end.
    #[serde(default)]
    pub check_drift: bool,
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
            slo: Slo::default(),
            find_breakpoint: true,
            replicates: 3,
            offered_shares: vec![0.7, 0.8, 0.9, 1.0, 1.05],
            check_drift: true,
        }
    }
}

/// One measured rung, as far as the search looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RungPoint {
    pub concurrency: u32,
    /// Output tokens a second.
    pub throughput: f64,
    /// 95% half-width of the throughput, if the rung was long enough to tell.
    pub half_width: Option<f64>,
    /// Output tokens of a request on average; 0 if not known.
    pub tokens_per_request: f64,
    /// Requests in all, those of them that failed, and those of these that were refused with 429 or 503.
    pub requests: u64,
    pub failed: u64,
    pub refused: u64,
    /// Requests that were held to the latency limits, and how many broke each.
    pub slo_requests: u64,
    pub ttft_violations: u64,
    pub tpot_violations: u64,
    /// The client was too near its own ceiling for the figures to be the server's.
    pub client_limited: bool,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Measure this concurrency, which may have been measured before.
    Measure(u32),
    /// Offer Poisson arrivals: this share of the highest throughput, which is so many requests a second.
    Offer {
        share: f64,
        rate: f64,
    },
    /// Measure this concurrency once more, to be held against what it was.
    Recheck(u32),
    Done(Box<Answer>),
}

/// All that was measured, each in the order it was.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    pub rungs: Vec<RungPoint>,
    pub offered: Vec<OfferedPoint>,
    pub rechecks: Vec<RungPoint>,
    /// What there is no more time for.
    pub no_more_rungs: bool,
    pub no_more_offers: bool,
    pub no_more_rechecks: bool,
}

/// What bounds the throughput.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// More concurrency brings no more throughput.
    Plateaued,
    /// Past its peak, throughput falls by more than two flat doublings.
    Retrograde,
    /// Throughput was still rising where the ladder ended.
    StillScaling,
    /// The server began to refuse requests (429, 503) before a plateau was seen.
    AdmissionLimited,
    /// Requests began to fail before a plateau was seen.
    ServiceBroken,
    /// A latency limit is broken before throughput saturates.
    SloBroken,
    /// The server did not come back after a rung in which nothing succeeded.
    ServerGone,
    /// The client was too near its own ceiling for the result to be the server's.
    ClientLimited,
    /// The time for the search ran out before a plateau was seen.
    OutOfTime,
}

/// Where throughput saturates and where service breaks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    pub verdict: Verdict,
    /// False: time ran out with something left to find.
    pub complete: bool,
    /// The smallest concurrency measured that has the share of the highest throughput, by the lower end of its interval
    /// where that is narrow enough to tell. Where throughput was still rising this is no more than a lower bound.
    pub saturation: u32,
    /// The least and the greatest concurrency that could be it, by the ends of the confidence intervals.
    pub saturation_low: u32,
    pub saturation_high: u32,
    /// Where the highest throughput was measured, what it was, and its 95% half-width.
    pub peak: u32,
    pub peak_throughput: f64,
    pub peak_half_width: Option<f64>,
    /// The mean of all rungs that cannot be told from the highest one, and its 95% half-width: what is held against other
    /// servers. The highest rung's own figure is too high by the luck that made it the highest.
    pub plateau_throughput: f64,
    pub plateau_half_width: Option<f64>,
    /// The greatest concurrency measured at which service held; 0 if it held at none.
    pub holds_at: u32,
    /// None: nothing that was measured broke service.
    pub breakpoint: Option<Breakpoint>,
    /// What became of arrivals that do not wait for the server. None: that was not tried.
    #[serde(default)]
    pub open_loop: Option<OpenLoopAnswer>,
    /// Whether the server was the same at the end as before. None: that was not looked at.
    #[serde(default)]
    pub drift: Option<Drift>,
}

/// What to do next. None: no rung served anything, so there is nothing to search.
pub fn next_step(config: &SearchConfig, measured: &Measured) -> Option<Step> {
    let rungs = Rungs::new(config, &measured.rungs);
    if rungs.all.is_empty() {
        return (!measured.no_more_rungs).then_some(Step::Measure(1));
    }
    if let Some(next) = rungs.next().filter(|_| !measured.no_more_rungs) {
        return (!rungs.serving().is_empty() || rungs.is_in_doubt()).then_some(Step::Measure(next));
    }
    let mut answer = rungs.answer()?;
    // A server that is gone, or one that was not seen for the client, has nothing more to say.
    if matches!(answer.verdict, Verdict::ServerGone | Verdict::ClientLimited) {
        return Some(Step::Done(Box::new(answer)));
    }
    let offers = Offers::new(config, rungs.max_rate(), &measured.offered);
    if let Some(share) = offers.next().filter(|_| !measured.no_more_offers) {
        return Some(Step::Offer { share, rate: share * offers.max_rate });
    }
    answer.open_loop = offers.answer();
    if let Some(next) = rungs.next_recheck(&measured.rechecks).filter(|_| !measured.no_more_rechecks) {
        return Some(Step::Recheck(next));
    }
    answer.drift = rungs.drift(&measured.rechecks);
    Some(Step::Done(Box::new(answer)))
}

/// The concurrencies that failed once and did not fail again.
pub(crate) fn not_repeated(config: &SearchConfig, rungs: &[RungPoint]) -> Vec<u32> {
    let rungs = Rungs::new(config, rungs);
    rungs.all.iter().filter(|rung| rung.hiccups() > 0).map(Rung::n).collect()
}

impl Rungs<'_> {
    /// The concurrency to measure next. None: all is found.
    fn next(&self) -> Option<u32> {
        if self.gone {
            return None;
        }
        if self.is_it_gone {
            return Some(1);
        }
        if let Some(doubted) = self.to_repeat() {
            return Some(doubted);
        }
        if self.rises_to_the_end() {
            // What is left of the throughput lies between the last rung that serves and the one that does not.
            let beyond = if self.broken().is_some() { None } else { self.above() };
            return beyond.or_else(|| self.for_breakpoint()).or_else(|| self.for_broken_saturation());
        }
        self.toward_saturation().or_else(|| self.for_breakpoint())
    }

    fn for_breakpoint(&self) -> Option<u32> {
        if !self.config.find_breakpoint {
            return None;
        }
        let beyond = if self.has_failed() { None } else { self.above() };
        beyond.or_else(|| self.toward_breakpoint())
    }

    /// Where requests fail before throughput saturates, the best that is served is all there is.
    fn for_broken_saturation(&self) -> Option<u32> {
        self.broken().and_then(|_| self.toward_saturation())
    }

    /// Whether no plateau was seen.
    fn rises_to_the_end(&self) -> bool {
        let ended = self.broken().is_some() || self.above().is_none();
        !(self.has_plateau() || ended && self.ends_flat())
    }

    fn answer(&self) -> Option<Answer> {
        let peak = self.peak()?;
        let saturation = self.saturation()?;
        let (plateau_throughput, plateau_half_width) = self.plateau()?;
        Some(Answer {
            verdict: self.verdict(saturation.at),
            complete: self.next().is_none(),
            saturation: saturation.at,
            saturation_low: saturation.low,
            saturation_high: saturation.high,
            peak: peak.n(),
            peak_throughput: peak.throughput(),
            peak_half_width: peak.point.half_width,
            plateau_throughput,
            plateau_half_width,
            holds_at: self.holds_at(),
            breakpoint: self.breakpoint(),
            open_loop: None,
            drift: None,
        })
    }

    fn verdict(&self, saturation: u32) -> Verdict {
        if self.gone {
            return Verdict::ServerGone;
        }
        if self.serving().iter().any(|rung| rung.point.client_limited) {
            return Verdict::ClientLimited;
        }
        let rises = self.rises_to_the_end();
        let breakpoint = self.breakpoint();
        let too_slow = |found: &Breakpoint| matches!(found.constraint, Constraint::Ttft | Constraint::Tpot);
        if breakpoint.filter(too_slow).is_some_and(|found| rises || found.first_fail < saturation) {
            return Verdict::SloBroken;
        }
        match self.broken() {
            _ if !rises => self.shape(),
            Some(broken) if broken.point.refused * 2 >= broken.point.failed => Verdict::AdmissionLimited,
            Some(_) => Verdict::ServiceBroken,
            None if self.above().is_some() => Verdict::OutOfTime,
            None => Verdict::StillScaling,
        }
    }
}
