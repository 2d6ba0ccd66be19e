//! The open-loop confirmation: arrivals that do not wait for the server, at shares of the throughput that the closed
//! loop found, and the highest rate at which service holds.

use serde::{Deserialize, Serialize};

/// One open-loop run, as far as the search looks at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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
