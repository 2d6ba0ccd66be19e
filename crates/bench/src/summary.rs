//! The numbers of a run, by their definitions, from its records. It must never read a clock.
//!
//! - Latencies are of the requests that ended inside the window; percentiles are nearest-rank, over the successes and
//!   again with the failures as infinite.
//! - Output tokens count when they came, input tokens when the first output token came, requests when they ended.
//! - TTFT: from sending to the first non-empty content, reasoning or tool delta. TPOT: (last - first) / (output tokens -
//!   tokens in the first chunk). Inter-chunk latency is called ITL only for requests whose every chunk is one token.
//! - Outcomes are of every request of the run, inside the window or not.

use serde::{Deserialize, Serialize};

use crate::load::RunLog;
use crate::open_loop::{self, OpenLoopFacts};
use crate::record::{Outcome, OutcomeCounts, RequestRecord, TokenSource};
use crate::slo::{Slo, SloCounts};
use crate::stats;
use crate::window::{self, Window};

/// Slices of the window from which the confidence interval is made.
const SLICES: usize = 100;

/// A sample's mean and nearest-rank percentiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Distribution {
    pub count: u64,
    pub mean: f64,
    pub min: f64,
    pub max: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    /// The same percentiles with each failed request as an infinite value; None is infinite. Only for latencies that
    /// every request has.
    pub p50_with_failures: Option<f64>,
    pub p90_with_failures: Option<f64>,
    pub p95_with_failures: Option<f64>,
    pub p99_with_failures: Option<f64>,
    /// 95% confidence intervals of the percentiles, lower and upper end, by the ranks that the binomial distribution
    /// gives them: whatever the distribution of the values, but as if they did not depend on one another. None: there
    /// are too few values to bound the percentile.
    #[serde(default)]
    pub p50_interval: Option<[f64; 2]>,
    #[serde(default)]
    pub p95_interval: Option<[f64; 2]>,
    #[serde(default)]
    pub p99_interval: Option<[f64; 2]>,
}

impl Distribution {
    /// None if there are no values.
    fn new(mut values: Vec<f64>, failures: usize) -> Option<Self> {
        values.sort_unstable_by(f64::total_cmp);
        let rank = |percent| stats::nearest_rank(&values, 0, percent);
        let rank_failed = |percent| stats::nearest_rank(&values, failures, percent);
        let interval =
            |percent| stats::rank_interval(values.len(), percent).map(|ends| ends.map(|rank| values[rank - 1]));
        Some(Self {
            count: values.len() as u64,
            mean: stats::mean(&values)?,
            min: *values.first()?,
            max: *values.last()?,
            p50: rank(50.0)?,
            p90: rank(90.0)?,
            p95: rank(95.0)?,
            p99: rank(99.0)?,
            p50_with_failures: rank_failed(50.0),
            p90_with_failures: rank_failed(90.0),
            p95_with_failures: rank_failed(95.0),
            p99_with_failures: rank_failed(99.0),
            p50_interval: interval(50.0),
            p95_interval: interval(95.0),
            p99_interval: interval(99.0),
        })
    }
}

/// Throughput over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rates {
    /// Successful requests a second.
    pub requests_per_s: f64,
    /// Tokens a second of successful requests.
    pub input_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
}

/// Tokens a second as one user sees them, in the three ways that are about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PerUser {
    /// 1 / TPOT of each request: the headline.
    pub one_over_tpot: Option<Distribution>,
    /// 1 / mean TPOT.
    pub one_over_mean_tpot: Option<f64>,
    /// Output tokens / time from sending to the end, of each request.
    pub output_over_e2e: Option<Distribution>,
}

/// The part of the run that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WindowFacts {
    /// Seconds from the start of the run.
    pub start_s: f64,
    pub end_s: f64,
    /// False: the run had no steady part, and this is all of it, ramp and drain included.
    pub steady: bool,
    /// Requests that ended inside, well or not.
    pub completions: u64,
}

/// Tokens of the successful requests of the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokenTotals {
    pub source: TokenSource,
    pub input: u64,
    pub output: u64,
    /// Input tokens that the server took from its prefix cache, and output tokens that were reasoning, as it says.
    pub cached_input: u64,
    pub reasoning_output: u64,
    /// Replies that by the server's count hold more tokens than were asked for at most.
    #[serde(default)]
    pub overlong_replies: u64,
}

/// One concurrency, measured. Latencies in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RungSummary {
    pub concurrency: u32,
    pub outcomes: OutcomeCounts,
    /// 0 to 1, over every request of the run.
    pub success_rate: f64,
    /// Requests, whatever their outcome, that were sent again because the server had closed a kept-alive connection.
    pub resent: u64,
    pub duration_s: f64,
    pub window: WindowFacts,
    pub rates: Rates,
    /// 95% half-width of output tokens a second by batch means; None if the window is not steady.
    pub output_half_width: Option<f64>,
    /// The same from the first request to the end of the last, as many tools report it.
    pub whole_run: Rates,
    pub per_user: PerUser,
    pub ttft_ms: Option<Distribution>,
    pub ttft_from_schedule_ms: Option<Distribution>,
    pub time_to_first_content_ms: Option<Distribution>,
    pub tpot_ms: Option<Distribution>,
    /// Successes of the window that hold more than one token: those of which a time between tokens can be known.
    #[serde(default)]
    pub replies_of_several: u64,
    /// Of the requests whose every chunk was one token, of which there were `itl_requests`.
    pub itl_ms: Option<Distribution>,
    pub itl_requests: u64,
    pub inter_chunk_ms: Option<Distribution>,
    pub tokens_per_chunk: Option<f64>,
    pub e2e_ms: Option<Distribution>,
    pub tokens: TokenTotals,
    /// How the requests that were due in the window stood to the latency limits, whenever they ended. None: there were no limits.
    pub slo: Option<SloCounts>,
    /// |N - X R| / N: how far concurrency, completion rate and time in the system are from Little's law. Large where
    /// the window was not steady.
    pub littles_law_error: Option<f64>,
    /// Output chunks a second that the client took in, to hold against its ceiling.
    pub chunks_per_s: f64,
    /// From when a request was due to its end, and how late after that it was sent.
    #[serde(default)]
    pub e2e_from_schedule_ms: Option<Distribution>,
    #[serde(default)]
    pub schedule_lag_ms: Option<Distribution>,
    /// Of an open loop, what was offered and whether the server kept up; `concurrency` is then the bound on requests in
    /// flight. None: a closed loop of `concurrency` clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_loop: Option<OpenLoopFacts>,
}

/// Summarizes a run, held to `slo`.
pub(crate) fn summarize(log: &RunLog, slo: &Slo) -> RungSummary {
    let window = window::steady_window(log);
    let over = |record: &&RequestRecord| record.outcome != Outcome::Cut && window.contains(record.done);
    let ended: Vec<&RequestRecord> = log.records.iter().filter(over).collect();
    let good: Vec<&RequestRecord> = ended.iter().copied().filter(|record| record.is_success()).collect();
    let failures = ended.len() - good.len();
    let mut outcomes = OutcomeCounts::default();
    log.records.iter().for_each(|record| outcomes.add(record.outcome));
    let latency = |value: fn(&RequestRecord) -> Option<std::time::Duration>, failures| {
        let values = good.iter().filter_map(|record| value(record)).map(|time| time.as_secs_f64() * 1e3);
        Distribution::new(values.collect(), failures)
    };
    let one_token: Vec<&RequestRecord> = good.iter().copied().filter(|record| record.one_token_chunks()).collect();
    let itl_ms = gaps(&one_token);
    let inter_chunk_ms = if one_token.len() == good.len() { itl_ms.clone() } else { gaps(&good) };
    let tpots: Vec<f64> = good.iter().filter_map(|record| record.tpot()).collect();
    let chunks: usize = good.iter().map(|record| record.chunk_micros.len()).sum();
    let output: u64 = good.iter().map(|record| record.output_tokens()).sum();
    let open_loop = open_loop::facts(log, &window);
    RungSummary {
        concurrency: log.concurrency,
        outcomes,
        success_rate: outcomes.success_rate(),
        resent: log.records.iter().filter(|record| record.resent).count() as u64,
        duration_s: log.ended.as_secs_f64(),
        window: WindowFacts {
            start_s: window.start.as_secs_f64(),
            end_s: window.end.as_secs_f64(),
            steady: window.steady,
            completions: ended.len() as u64,
        },
        rates: rates(log, &window),
        output_half_width: output_half_width(log, &window),
        whole_run: rates(log, &window::whole_run(log)),
        per_user: per_user(&good, &tpots),
        ttft_ms: latency(RequestRecord::ttft, failures),
        ttft_from_schedule_ms: latency(RequestRecord::ttft_from_schedule, failures),
        time_to_first_content_ms: latency(RequestRecord::time_to_first_content, failures),
        tpot_ms: Distribution::new(tpots.iter().map(|tpot| tpot * 1e3).collect(), failures),
        replies_of_several: good.iter().filter(|record| record.output_tokens() > 1).count() as u64,
        itl_ms,
        itl_requests: one_token.len() as u64,
        inter_chunk_ms,
        tokens_per_chunk: (chunks > 0).then(|| output as f64 / chunks as f64),
        e2e_ms: latency(|record| Some(record.e2e()), failures),
        tokens: token_totals(&log.records),
        slo: SloCounts::new(slo, &log.records, &window),
        littles_law_error: littles_law_error(
            open_loop.map_or(log.concurrency.into(), |o| o.in_flight_mean),
            &ended,
            &window,
        ),
        chunks_per_s: chunk_rate(log, &window),
        e2e_from_schedule_ms: latency(|record| Some(record.e2e_from_schedule()), failures),
        schedule_lag_ms: latency(|record| Some(record.lag()), 0),
        open_loop,
    }
}

/// Milliseconds between successive chunks.
fn gaps(records: &[&RequestRecord]) -> Option<Distribution> {
    Distribution::new(records.iter().flat_map(|record| record.chunk_gaps()).map(|gap| gap * 1e3).collect(), 0)
}

fn rates(log: &RunLog, window: &Window) -> Rates {
    let seconds = window.seconds();
    let mut rates = Rates::default();
    for record in log.records.iter().filter(|record| record.is_served()) {
        if record.is_success() && window.contains(record.done) {
            rates.requests_per_s += 1.0 / seconds;
        }
        if record.first.is_some_and(|first| window.contains(first)) {
            rates.input_tokens_per_s += record.input_tokens() as f64 / seconds;
        }
        let inside: f64 = record.emissions().filter(|(at, _)| window.contains(*at)).map(|(_, tokens)| tokens).sum();
        rates.output_tokens_per_s += inside / seconds;
    }
    rates
}

fn output_half_width(log: &RunLog, window: &Window) -> Option<f64> {
    window.steady.then(|| stats::half_width(&window::output_rates(log, window, SLICES)))?
}

fn chunk_rate(log: &RunLog, window: &Window) -> f64 {
    let chunks = log.records.iter().flat_map(|record| record.emissions());
    chunks.filter(|(at, _)| window.contains(*at)).count() as f64 / window.seconds()
}

fn per_user(good: &[&RequestRecord], tpots: &[f64]) -> PerUser {
    let over_e2e = |record: &&RequestRecord| {
        let seconds = record.e2e().as_secs_f64();
        (seconds > 0.0).then(|| record.output_tokens() as f64 / seconds)
    };
    PerUser {
        one_over_tpot: Distribution::new(tpots.iter().map(|tpot| 1.0 / tpot).collect(), 0),
        one_over_mean_tpot: stats::mean(tpots).map(|tpot| 1.0 / tpot),
        output_over_e2e: Distribution::new(good.iter().filter_map(over_e2e).collect(), 0),
    }
}

fn token_totals(records: &[RequestRecord]) -> TokenTotals {
    let mut totals = TokenTotals {
        source: TokenSource::Usage,
        input: 0,
        output: 0,
        cached_input: 0,
        reasoning_output: 0,
        overlong_replies: 0,
    };
    for record in records.iter().filter(|record| record.is_success()) {
        totals.input += record.input_tokens();
        totals.output += record.output_tokens();
        match record.usage {
            Some(usage) => {
                totals.cached_input += usage.cached_tokens;
                totals.reasoning_output += usage.reasoning_tokens;
                totals.overlong_replies += u64::from(usage.completion_tokens > record.max_tokens.into());
            }
            None => totals.source = TokenSource::Chunks,
        }
    }
    totals
}

fn littles_law_error(concurrency: f64, ended: &[&RequestRecord], window: &Window) -> Option<f64> {
    let times: Vec<f64> = ended.iter().map(|record| record.e2e_from_schedule().as_secs_f64()).collect();
    let in_system = ended.len() as f64 / window.seconds() * stats::mean(&times)?;
    (concurrency > 0.0).then(|| (concurrency - in_system).abs() / concurrency)
}

/// The message of the first failure of each cause, to be shown to a person.
pub(crate) fn failure_samples(records: &[RequestRecord]) -> Vec<String> {
    let mut seen: Vec<Outcome> = Vec::new();
    let mut samples = Vec::new();
    for record in records {
        if let Some(detail) = &record.detail
            && !seen.contains(&record.outcome)
        {
            seen.push(record.outcome);
            samples.push(detail.clone());
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::fixture::{failure, success};

    fn log_of(concurrency: u32, records: Vec<RequestRecord>, ramp_end: f64, first_idle: f64) -> RunLog {
        let ended = records.iter().map(|record| record.done).max().expect("a record");
        let [ramp_end, first_idle] = [ramp_end, first_idle].map(Duration::from_secs_f64);
        RunLog { ended, ..RunLog::of(concurrency, records, ramp_end, first_idle) }
    }

    /// Four clients, requests of 11 tokens: 0.25 s to the first, then 0.075 s each, 1 s in all.
    fn steady() -> RunLog {
        let mut records = Vec::new();
        for round in 0..20 {
            for client in 0..4 {
                records.push(success(f64::from(round) + 0.25 * f64::from(client), 0.25, 0.075, 11));
            }
        }
        log_of(4, records, 0.75, 20.0)
    }

    fn close(value: f64, expected: f64, share: f64) {
        assert!((value - expected).abs() <= expected * share, "{value}, expected {expected}");
    }

    #[test]
    fn a_steady_run_gives_back_what_it_was_made_of() {
        let summary = summarize(&steady(), &Slo::default());
        assert!(summary.window.steady);
        close(summary.rates.requests_per_s, 4.0, 0.05);
        close(summary.rates.output_tokens_per_s, 44.0, 0.03);
        close(summary.rates.input_tokens_per_s, 80.0, 0.05);
        close(summary.chunks_per_s, 44.0, 0.03);
        let ttft = summary.ttft_ms.expect("80 successes");
        assert_eq!(
            (ttft.p50.round(), ttft.p99.round(), ttft.p99_with_failures.map(f64::round)),
            (250.0, 250.0, Some(250.0))
        );
        close(summary.tpot_ms.expect("80 successes").mean, 75.0, 1e-6);
        close(summary.itl_ms.expect("80 successes").p95, 75.0, 1e-6);
        close(summary.per_user.one_over_tpot.expect("80 successes").mean, 1.0 / 0.075, 1e-6);
        close(summary.per_user.one_over_mean_tpot.expect("80 successes"), 1.0 / 0.075, 1e-6);
        close(summary.per_user.output_over_e2e.expect("80 successes").mean, 11.0, 1e-6);
        assert!(summary.littles_law_error.expect("80 ended") < 0.05);
        assert!(summary.output_half_width.expect("steady") < 3.0);
        assert_eq!((summary.tokens.input, summary.tokens.output), (1600, 880));
        assert_eq!(summary.success_rate, 1.0);
    }

    #[test]
    fn the_burst_at_the_end_does_not_raise_the_rate() {
        // A server that holds everything back and lets go of it after the last request was issued.
        let mut log = steady();
        for client in 0..4 {
            log.records.push(success(19.9 + 0.01 * f64::from(client), 5.0, 0.0001, 1000));
        }
        log.ended = Duration::from_secs(25);
        close(summarize(&log, &Slo::default()).rates.output_tokens_per_s, 44.0, 0.03);
        assert!(summarize(&log, &Slo::default()).whole_run.output_tokens_per_s > 150.0);
    }

    #[test]
    fn failures_count_for_the_rate_of_success_and_for_the_percentiles_but_not_for_throughput() {
        let mut log = steady();
        let before = summarize(&log, &Slo::default()).rates;
        for round in 0..20 {
            log.records.push(failure(f64::from(round), 0.5, Outcome::TooManyRequests));
        }
        let summary = summarize(&log, &Slo::default());
        assert_eq!(summary.outcomes.http_429, 20);
        close(summary.success_rate, 0.8, 1e-9);
        assert_eq!(summary.rates, before);
        let ttft = summary.ttft_ms.expect("80 successes");
        assert_eq!(ttft.p50_with_failures.map(f64::round), Some(250.0));
        assert_eq!(ttft.p95_with_failures, None, "a fifth failed, so the 95th percentile is infinite");
        assert_eq!(ttft.p95.round(), 250.0);
    }

    #[test]
    fn failures_outside_the_window_still_count() {
        let mut log = steady();
        log.records.push(failure(20.5, 1.0, Outcome::Timeout));
        log.ended = Duration::from_secs_f64(21.5);
        assert_eq!(summarize(&log, &Slo::default()).outcomes.timeout, 1);
        assert!(summarize(&log, &Slo::default()).success_rate < 1.0);
    }

    #[test]
    fn merged_chunks_are_not_called_itl() {
        let mut log = steady();
        for record in &mut log.records {
            record.usage.as_mut().expect("usage").completion_tokens = 44;
        }
        let summary = summarize(&log, &Slo::default());
        assert_eq!((summary.itl_ms, summary.itl_requests), (None, 0));
        close(summary.inter_chunk_ms.expect("chunks").mean, 75.0, 1e-6);
        close(summary.tokens_per_chunk.expect("chunks"), 4.0, 1e-9);
        close(summary.rates.output_tokens_per_s, 176.0, 0.03);
    }

    #[test]
    fn missing_usage_is_said() {
        let mut log = steady();
        assert_eq!(summarize(&log, &Slo::default()).tokens.source, TokenSource::Usage);
        log.records[3].usage = None;
        assert_eq!(summarize(&log, &Slo::default()).tokens.source, TokenSource::Chunks);
    }

    #[test]
    fn nothing_but_failures_is_summarized_too() {
        let records = (0..9).map(|i| failure(f64::from(i), 0.1, Outcome::Connection)).collect();
        let summary = summarize(&log_of(1, records, 0.0, 9.0), &Slo::default());
        assert_eq!((summary.success_rate, summary.ttft_ms, summary.itl_ms), (0.0, None, None));
        assert_eq!(summary.rates, Rates::default());
    }

    #[test]
    fn one_sample_of_each_cause() {
        let mut records: Vec<_> = (0..4).map(|_| failure(0.0, 0.1, Outcome::Timeout)).collect();
        records.push(failure(0.0, 0.1, Outcome::Connection));
        for (i, record) in records.iter_mut().enumerate() {
            record.detail = Some(format!("number {i}"));
        }
        assert_eq!(failure_samples(&records), ["number 0", "number 4"]);
    }
}
