//! What a reader must know before believing a result, each said once and in full.

use serde::{Deserialize, Serialize};

use crate::arrivals::Arrivals;
use crate::record::TokenSource;
use crate::report::RungReport;
use crate::stop::Stop;
use crate::summary::RungSummary;

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The server or its machine was not the same at the end as at the beginning.
    Drift,
    /// The client was too near its own ceiling.
    ClientLimited,
    /// The server's token counts are not what its replies hold.
    UsageWrong,
    /// The server sends no token counts.
    UsageMissing,
    /// The tokens of a reply came all at once, so that nothing is known of the time between them.
    Burst,
    /// The server was at work before the measurement began.
    NotIdle,
    /// Prompts were answered from the server's prefix cache though each was to be new to it.
    CachedTokens,
    /// This process may not open enough connections for the concurrency asked for.
    Descriptors,
    /// Arrivals that were never sent, because too many requests were in flight.
    Dropped,
    /// Arrivals that were sent later than they were due: the client could not keep to the schedule.
    SentLate,
    /// The end of a trace was not sent.
    TraceCut,
    /// Requests that were cut off at the end of the time.
    Cut,
    /// Ended by a person.
    Interrupted,
    /// The server's process, which the search had started, ended while it was measured.
    ServerEnded,
    /// No connection to the server succeeded any more, and the rest of the requests was not sent.
    Unreachable,
    /// A part of the search was left out.
    NotConfirmed,
    /// A rung that failed once and did not fail again.
    NotRepeated,
}

/// One thing that a report says about its own figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    pub kind: FindingKind,
    /// A whole sentence.
    pub text: String,
}

impl Finding {
    pub fn new(kind: FindingKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Whether the result must not be used as it stands.
    pub fn invalidates(&self) -> bool {
        matches!(self.kind, FindingKind::Drift | FindingKind::ClientLimited | FindingKind::UsageWrong)
    }
}

/// A share of cached input tokens up to this is what chat templates have in common.
const TOLERATED_CACHED: f64 = 0.5;

/// Of an open loop's requests all but one in a hundred are to be sent within so many milliseconds of when they were due.
const TOLERATED_LAG_MS: f64 = 10.0;

/// No server makes a token in less: what came faster was held back.
const LEAST_TPOT_MS: f64 = 0.02;

/// What is to be said of a trace of which not all was sent.
pub(crate) fn of_trace(arrivals: Arrivals, rung: &RungReport, requests: usize) -> Option<Finding> {
    let outcomes = &rung.summary.outcomes;
    let sent = outcomes.total() + outcomes.cut;
    (arrivals == Arrivals::Trace && sent < requests as u64).then(|| {
        let text = format!(
            "Of the trace's {requests} requests the first {sent} were sent; give more --requests, --max-seconds or \
             --trace-speed for all of it."
        );
        Finding::new(FindingKind::TraceCut, text)
    })
}

/// What the rungs themselves show, whatever they were measured for.
pub(crate) fn of_rungs<'a>(rungs: impl IntoIterator<Item = &'a RungReport>, salted: bool, stop: &Stop) -> Vec<Finding> {
    let mut sum = Sums::default();
    rungs.into_iter().for_each(|rung| sum.add(rung));
    let Sums { requests, dropped, cut, overlong, cached, input, .. } = sum;
    let mut findings = Vec::new();
    let mut find = |kind, holds, text: String| {
        if holds {
            findings.push(Finding::new(kind, text));
        }
    };
    find(
        FindingKind::Interrupted,
        stop.is_set(),
        "The measurement was interrupted: the report is of what there was until then.".to_owned(),
    );
    find(
        FindingKind::UsageWrong,
        overlong > 0,
        format!(
            "Of {overlong} replies the server says that they hold more tokens than were asked for at most: its counts, \
             and the rates made from them, are not to be believed."
        ),
    );
    find(
        FindingKind::UsageMissing,
        sum.without_usage,
        "The server sent no usage with some replies: output tokens are chunks, input tokens the prompts' own."
            .to_owned(),
    );
    find(
        FindingKind::Burst,
        sum.in_bursts,
        "Replies came in one burst each: the server, or a proxy before it, holds their tokens back until the end. The time \
         to the first token is that of the whole reply, and what is said of the time between tokens is not to be used."
            .to_owned(),
    );
    let share = cached as f64 / input.max(1) as f64;
    find(
        FindingKind::CachedTokens,
        salted && share > TOLERATED_CACHED,
        format!(
            "{:.0}% of the input tokens came from the server's prefix cache though every prompt was new to it: the \
             requests share a long beginning, or the server counts otherwise.",
            100.0 * share
        ),
    );
    find(
        FindingKind::Dropped,
        dropped > 0,
        format!(
            "{dropped} of {requests} arrivals were not sent, because as many requests were in flight as may be; they \
             count as failures."
        ),
    );
    find(
        FindingKind::SentLate,
        sum.lag_ms > TOLERATED_LAG_MS,
        format!(
            "The client could not keep to the schedule: one arrival in a hundred was sent {:.0} ms late or later. What it \
             measured is partly itself; run it on a machine with more free cores.",
            sum.lag_ms
        ),
    );
    find(
        FindingKind::Cut,
        cut > 0,
        format!("{cut} requests were cut off when the time was up; they count neither as successes nor as failures."),
    );
    findings
}

#[derive(Default)]
struct Sums {
    requests: u64,
    dropped: u64,
    cut: u64,
    overlong: u64,
    cached: u64,
    input: u64,
    without_usage: bool,
    in_bursts: bool,
    /// The worst 99th percentile of the open loops.
    lag_ms: f64,
}

impl Sums {
    fn add(&mut self, RungReport { summary, .. }: &RungReport) {
        self.requests += summary.outcomes.total();
        self.dropped += summary.outcomes.dropped;
        self.cut += summary.outcomes.cut;
        self.overlong += summary.tokens.overlong_replies;
        self.cached += summary.tokens.cached_input;
        self.input += summary.tokens.input;
        let lag = summary.schedule_lag_ms.as_ref().filter(|_| summary.open_loop.is_some());
        self.lag_ms = lag.map_or(0.0, |lag| lag.p99).max(self.lag_ms);
        self.without_usage |= summary.tokens.source == TokenSource::Chunks;
        self.in_bursts |= is_in_bursts(summary);
    }
}

/// Whether most replies of several tokens came in one piece, or faster than tokens can be made.
fn is_in_bursts(summary: &RungSummary) -> bool {
    let timed = summary.tpot_ms.as_ref().filter(|tpot| tpot.p50 >= LEAST_TPOT_MS).map_or(0, |tpot| tpot.count);
    timed * 2 < summary.replies_of_several
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::load::RunLog;
    use crate::record::fixture::success;
    use crate::report::sample;
    use crate::slo::Slo;

    #[test]
    fn a_client_that_is_late_is_said_of_open_loops() {
        let late = |kind| {
            let mut rung = sample::report().offered[0].rung.clone();
            rung.summary.schedule_lag_ms.as_mut().expect("lags").p99 = 25.0;
            rung.summary.open_loop = rung.summary.open_loop.filter(|_| kind == "open");
            of_rungs([&rung], false, &Stop::default()).into_iter().find(|found| found.kind == FindingKind::SentLate)
        };
        assert!(late("open").expect("a finding").text.contains("25 ms late"));
        assert_eq!(late("closed"), None);
    }

    #[test]
    fn replies_of_one_token_are_no_bursts() {
        let found = |short: usize, timed: bool| {
            let long = if timed { success(9.0, 0.1, 0.1, 100) } else { success(9.0, 0.1, 0.0, 100) };
            let records = [vec![success(0.0, 0.1, 0.1, 1); short], vec![long]].concat();
            let log = RunLog::of(1, records, Duration::ZERO, Duration::from_secs(30));
            let rung = RungReport::new(&log, &Slo::default());
            of_rungs([&rung], false, &Stop::default()).iter().any(|found| found.kind == FindingKind::Burst)
        };
        assert!(!found(3, true) && found(3, false) && found(0, false));
    }

    #[test]
    fn a_trace_that_was_cut_is_said() {
        let rung = sample::report().offered[0].rung.clone();
        let sent = rung.summary.outcomes.total() + rung.summary.outcomes.cut;
        let found = |arrivals, more: usize| of_trace(arrivals, &rung, sent as usize + more);
        assert_eq!(found(Arrivals::Trace, 0), None);
        assert_eq!(found(Arrivals::Closed, 5), None);
        assert_eq!(found(Arrivals::Trace, 5).expect("a finding").kind, FindingKind::TraceCut);
    }
}
