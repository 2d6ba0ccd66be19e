//! What is going on, for whoever shows it.

use std::time::Duration;

use crate::load::Live;
use crate::preflight::ClientCeiling;
use crate::report::{RungReport, WorkloadFacts};
use crate::stats;

/// The span over which the live rate is taken.
const LIVE_SPAN: Duration = Duration::from_secs(2);

/// News of a measurement.
#[derive(Clone, Debug)]
pub enum Progress {
    /// The client has been measured.
    Preflight(ClientCeiling),
    /// The model was found and the prompts were chosen; what of the server is looked at meanwhile, in words.
    Ready { model: String, workload: WorkloadFacts, watched: String },
    /// A rung is under way. Comes a few times a second.
    Running(Running),
    /// A rung is done.
    Rung(Stage, Box<RungReport>),
}

/// What a rung is measured for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// Clients that wait for their replies.
    ClosedLoop,
    /// Arrivals that wait for nothing: so many requests a second.
    OpenLoop { rate: Option<f64> },
    /// Whether the server is still what it was.
    Recheck,
}

/// A rung that is under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Running {
    pub stage: Stage,
    /// Of an open loop, the bound.
    pub concurrency: u32,
    /// Requests that ended well and not.
    pub done: u64,
    pub failed: u64,
    /// Output chunks a second over the last two seconds.
    pub chunks_per_s: f64,
    /// 95% half-width of the rate so far, as a share of it. None: too early to tell.
    pub half_width: Option<f64>,
    pub elapsed: Duration,
    /// For the whole measurement. None: it is bounded by its requests.
    pub left: Option<Duration>,
}

impl Running {
    pub(crate) fn new(stage: Stage, concurrency: u32, live: &Live<'_>, left: Option<Duration>) -> Self {
        let failed = live.records.iter().filter(|record| !record.is_success()).count() as u64;
        let rates = live.timeline.rates(live.now.saturating_sub(LIVE_SPAN), live.now);
        Self {
            stage,
            concurrency,
            done: live.records.len() as u64 - failed,
            failed,
            chunks_per_s: stats::mean(&rates).unwrap_or(0.0),
            half_width: live.precision(),
            elapsed: live.now,
            left,
        }
    }
}

impl Live<'_> {
    /// The 95% half-width of the rate of output chunks behind the transient, as a share of it.
    pub(crate) fn precision(&self) -> Option<f64> {
        let rates = self.timeline.rates(self.ramp_end?, self.now);
        let steady = &rates[stats::transient(&rates)..];
        let mean = stats::mean(steady).filter(|mean| *mean > 0.0)?;
        Some(stats::half_width(steady)? / mean)
    }
}
