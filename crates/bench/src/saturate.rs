//! Feeds the saturation search: measures what it asks for until it has an answer or the time is up.

use std::time::{Duration, Instant};

use crate::arrivals::Arrivals;
use crate::config::{RungRule, SaturateConfig};
use crate::descriptors;
use crate::error::{BenchError, Result};
use crate::findings::{self, Finding, FindingKind};
use crate::load::Live;
use crate::preflight::ClientCeiling;
use crate::progress::{Progress, Running, Stage};
use crate::report::{OfferedReport, RungReport, SATURATION_SCHEMA, SaturationReport, unix_now};
use crate::run::SHOW_EVERY;
use crate::search::{Answer, Measured, OfferedPoint, RungPoint, SearchConfig, Step, Verdict, next_step, not_repeated};
use crate::stop::Stop;
use crate::target::{Rung, Target, TargetConfig};

/// A rung in which too little completed goes on up to so many times its longest time.
const EXTENSION: u32 = 3;
/// Requests for each client that must complete even if the rung's time is up.
const LEAST_COMPLETIONS_PER_CLIENT: usize = 2;
/// The clients of a rung start spread over the last rung's mean request time, but no longer than this.
const LONGEST_RAMP: Duration = Duration::from_secs(5);
/// What an endpoint has to get ready in, however little time there is.
const LEAST_PREPARATION: Duration = Duration::from_secs(15);
/// What the last rung is given at least when the budget is nearly spent.
const SHORTEST_RUNG: Duration = Duration::from_secs(1);
/// The most requests in flight of an open loop, as far as this process may have so many connections.
const MOST_IN_FLIGHT: u32 = 4096;
/// Arrivals are offered for so many times what a request takes at the saturation point, if there is time: what is in
/// flight of a server that keeps up grows as well until the first have ended.
const REQUEST_TIMES_OFFERED: f64 = 6.0;
/// Shares of the budget at which the closed loop and the open loop must be over, where something comes after them.
const CLOSED_LOOP_SHARE: f64 = 0.7;
const OPEN_LOOP_SHARE: f64 = 0.92;

/// Measures the client, then drives the endpoint up the ladder and bisects, offers it arrivals that do not wait, and
/// looks whether it is still what it was, all within the budget. `progress` is called a few times a second; `stop` ends
/// the search early, with an answer from what there is.
///
/// Must be called inside a tokio runtime with time and I/O enabled. Dropping the future ends the search.
///
/// # Errors
/// What keeps the search from starting (a bad configuration, an unreachable server, prompts that cannot be read), and
/// a server that serves nothing even at concurrency 1. A server that breaks later ends the search, not the report.
pub async fn saturate_until(
    config: &SaturateConfig,
    stop: &Stop,
    progress: impl Fn(&Progress),
) -> Result<SaturationReport> {
    config.validate()?;
    let started_unix_s = unix_now();
    let budget = Budget { began: Instant::now(), all: config.budget };
    let (most, too_few) = descriptors::connections_for(config.search.max_concurrency);
    let (most_in_flight, _) = descriptors::connections_for(most.max(MOST_IN_FLIGHT));
    let search = SearchConfig { max_concurrency: most, ..config.search.clone() };
    let target = TargetConfig {
        endpoint: &config.endpoint,
        generation: &config.generation,
        workload: &config.workload,
        connect_timeout: config.connect_timeout,
        request_timeout: config.request_timeout,
        requests: u64::MAX,
        slo: config.search.slo,
        stop: stop.clone(),
        check_usage: config.warmup > 0,
        own_server: config.own_server.as_ref(),
        server_gpus: &config.server_gpus,
    };
    let target = Target::prepare(target, budget.left(1.0).max(LEAST_PREPARATION)).await?;
    progress(&target.ready());
    let client_ceiling = target.client_ceiling(config.null_server_url.as_deref(), most).await?;
    progress(&Progress::Preflight(client_ceiling.clone()));
    target.warm_up(config.warmup, budget.left(1.0).max(SHORTEST_RUNG)).await;
    let mut walk = Walk {
        config,
        search: &search,
        most_in_flight,
        target: &target,
        client_ceiling: &client_ceiling,
        budget,
        stop,
        progress: &progress,
        measured: Measured::default(),
        rungs: Vec::new(),
        offered: Vec::new(),
        rechecks: Vec::new(),
    };
    let answer = walk.run().await?;
    let findings = target.findings.iter().cloned().chain(too_few).chain(walk.findings(&answer)).collect();
    let Walk { mut rungs, offered, rechecks, .. } = walk;
    rungs.sort_by_key(|rung| rung.summary.concurrency);
    Ok(SaturationReport {
        schema: SATURATION_SCHEMA.to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_s,
        model: target.model.clone(),
        config: config.clone(),
        workload: target.workload.clone(),
        server_start: target.telemetry.start(),
        client_ceiling,
        answer,
        rungs,
        offered,
        rechecks,
        findings,
    })
}

/// [`saturate_until`] its end.
///
/// # Errors
/// As there.
pub async fn saturate(config: &SaturateConfig, progress: impl Fn(&Progress)) -> Result<SaturationReport> {
    saturate_until(config, &Stop::default(), progress).await
}

/// The time for the whole search.
#[derive(Clone, Copy)]
struct Budget {
    began: Instant,
    all: Duration,
}

impl Budget {
    /// Until `share` of it is spent.
    fn left(&self, share: f64) -> Duration {
        self.all.mul_f64(share).saturating_sub(self.began.elapsed())
    }
}

/// A search under way.
struct Walk<'a, P> {
    config: &'a SaturateConfig,
    search: &'a SearchConfig,
    /// Of an open loop.
    most_in_flight: u32,
    target: &'a Target,
    client_ceiling: &'a ClientCeiling,
    budget: Budget,
    stop: &'a Stop,
    progress: &'a P,
    measured: Measured,
    rungs: Vec<RungReport>,
    offered: Vec<OfferedReport>,
    rechecks: Vec<RungReport>,
}

impl<P: Fn(&Progress)> Walk<'_, P> {
    async fn run(&mut self) -> Result<Answer> {
        loop {
            let step = next_step(self.search, &self.measured).ok_or_else(|| self.nothing())?;
            let over = |left: Duration| left.is_zero() || self.stop.is_set();
            match step {
                Step::Done(answer) => return Ok(*answer),
                // The first rung is measured whatever the time, for without it there is no answer at all.
                Step::Measure(_) if !self.rungs.is_empty() && over(self.left_for_rungs()) => {
                    self.measured.no_more_rungs = true;
                }
                Step::Offer { .. } if over(self.left_for_offers()) => self.measured.no_more_offers = true,
                Step::Recheck(_) if over(self.budget.left(1.0)) => self.measured.no_more_rechecks = true,
                Step::Measure(concurrency) => {
                    let rung = self.closed(Stage::ClosedLoop, concurrency, self.left_for_rungs()).await;
                    match says_something(&rung) {
                        true => self.measured.rungs.push(point(&rung, self.client_ceiling)),
                        false => self.measured.no_more_rungs = true,
                    }
                    self.rungs.push(rung);
                }
                Step::Recheck(concurrency) => {
                    let rung = self.closed(Stage::Recheck, concurrency, self.budget.left(1.0)).await;
                    // Too short a rung would show a change that is its own.
                    match rung.summary.window.steady {
                        true => self.measured.rechecks.push(point(&rung, self.client_ceiling)),
                        false => self.measured.no_more_rechecks = true,
                    }
                    self.rechecks.push(rung);
                }
                Step::Offer { share, rate } => {
                    let rung = self.open(rate).await;
                    // Too short a time of arrivals shows a number in flight that grows or one that does not, by chance.
                    match says_something(&rung) && rung.summary.window.steady {
                        true => self.measured.offered.push(offered_point(share, rate, &rung)),
                        false => self.measured.no_more_offers = true,
                    }
                    self.offered.push(OfferedReport { share, rate, rung });
                }
            }
        }
    }

    /// Why there is no answer.
    fn nothing(&self) -> BenchError {
        if self.stop.is_set() { BenchError::Interrupted } else { nothing_works(&self.rungs) }
    }

    fn left_for_rungs(&self) -> Duration {
        let more = !self.search.offered_shares.is_empty() || self.search.check_drift;
        self.budget.left(if more { CLOSED_LOOP_SHARE } else { 1.0 })
    }

    fn left_for_offers(&self) -> Duration {
        self.budget.left(if self.search.check_drift { OPEN_LOOP_SHARE } else { 1.0 })
    }

    async fn closed(&self, stage: Stage, concurrency: u32, left: Duration) -> RungReport {
        let rule = &self.config.rung;
        let last = self.rungs.last().and_then(|rung| rung.summary.e2e_ms.as_ref());
        let request_time = last.map_or(0.0, |e2e| e2e.mean / 1e3);
        let longest = left.max(SHORTEST_RUNG);
        let rung = Rung {
            concurrency,
            arrivals: Arrivals::Closed,
            seed: 0,
            max_requests: u64::MAX,
            max_duration: (rule.max_time * EXTENSION).min(longest),
            ramp: Duration::from_secs_f64(request_time).min(LONGEST_RAMP).min(rule.max_time / 2),
            cut_after: Some(longest),
        };
        let mut checked = Instant::now();
        self.measure(stage, rung, |live| {
            // Looking at the precision all the time would stop at its luckiest moment.
            if checked.elapsed() < (live.now / 10).max(Duration::from_secs(1)).min(rule.max_time / 4) {
                return false;
            }
            checked = Instant::now();
            is_enough(rule, concurrency, live)
        })
        .await
    }

    /// Poisson arrivals for as long as a rung may take, or longer where requests take long: a backlog shows by growing,
    /// which takes its time.
    async fn open(&self, rate: f64) -> RungReport {
        let rule = &self.config.rung;
        let longest = self.left_for_offers().max(SHORTEST_RUNG);
        let rung = Rung {
            concurrency: self.most_in_flight,
            arrivals: Arrivals::Poisson { rate },
            // A seed of its own for each.
            seed: self.config.workload.seed.wrapping_add(1 + self.offered.len() as u64),
            max_requests: u64::MAX,
            max_duration: rule.max_time.max(request_time(&self.rungs).mul_f64(REQUEST_TIMES_OFFERED)).min(longest),
            ramp: Duration::ZERO,
            cut_after: Some(longest),
        };
        self.measure(Stage::OpenLoop { rate: Some(rate) }, rung, |_| false).await
    }

    async fn measure(&self, stage: Stage, rung: Rung, mut is_enough: impl FnMut(&Live<'_>) -> bool) -> RungReport {
        let concurrency = rung.concurrency;
        let mut shown = Instant::now();
        let observe = |live: &Live<'_>| {
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                let left = Some(self.budget.left(1.0));
                (self.progress)(&Progress::Running(Running::new(stage, concurrency, live, left)));
            }
            is_enough(live)
        };
        let report = self.target.measure(rung, observe).await;
        (self.progress)(&Progress::Rung(stage, Box::new(report.clone())));
        report
    }

    fn findings(&self, answer: &Answer) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |kind, text: String| findings.push(Finding::new(kind, text));
        if let Some(drift) = answer.drift.filter(|drift| drift.invalidates()) {
            let changed = [Some(drift.at_one), drift.at_saturation].into_iter().flatten();
            let changed = changed.filter(|recheck| recheck.has_changed).map(|recheck| {
                let (n, change) = (recheck.concurrency, 100.0 * recheck.change);
                format!("at N = {n} by {change:+.1}%")
            });
            let changed = changed.collect::<Vec<_>>().join(" and ");
            find(
                FindingKind::Drift,
                format!("The server was not the same at the end: its throughput has changed {changed}. Measure again."),
            );
        }
        if answer.verdict == Verdict::ClientLimited {
            find(
                FindingKind::ClientLimited,
                "The client came within a quarter of its own ceiling: what was measured may be the client.".to_owned(),
            );
        }
        for n in not_repeated(self.search, &self.measured.rungs) {
            let text =
                format!("A failure at N = {n} did not happen again when it was measured again; it was left out.");
            find(FindingKind::NotRepeated, text);
        }
        if answer.open_loop.is_none() && !self.is_over(answer) {
            let text = "What was found was not held against arrivals that do not wait for the server (open loop).";
            find(FindingKind::NotConfirmed, text.to_owned());
        }
        if answer.drift.is_none() && !self.is_over(answer) {
            let text = "Whether the server was the same at the end as before was not looked at.";
            find(FindingKind::NotConfirmed, text.to_owned());
        }
        let all = self.rungs.iter().chain(self.offered.iter().map(|offered| &offered.rung)).chain(&self.rechecks);
        findings.extend(unknown_offer(&self.offered));
        findings.extend(findings::of_rungs(all, self.config.workload.salt, self.stop));
        findings
    }

    /// Whether there was nothing left to confirm.
    fn is_over(&self, answer: &Answer) -> bool {
        matches!(answer.verdict, Verdict::ServerGone | Verdict::ClientLimited)
    }
}

/// Whether a rung has been measured well enough, or for long enough.
fn is_enough(rule: &RungRule, concurrency: u32, live: &Live<'_>) -> bool {
    let Some(ramp_end) = live.ramp_end else { return false };
    let completed = live.records.iter().filter(|record| record.done > ramp_end).count();
    let clients = concurrency as usize;
    if live.now >= rule.max_time {
        return completed >= LEAST_COMPLETIONS_PER_CLIENT * clients;
    }
    if live.now < rule.min_time || completed < rule.completions_per_client as usize * clients {
        return false;
    }
    live.precision().is_some_and(|half_width| half_width <= rule.half_width)
}

/// Whether any request of a rung ended before it was cut off.
fn says_something(rung: &RungReport) -> bool {
    rung.summary.outcomes.total() > 0
}

/// What is to be said of arrivals that were offered for too short a time.
fn unknown_offer(offered: &[OfferedReport]) -> Option<Finding> {
    let OfferedReport { rate, .. } = offered.iter().find(|offered| !offered.rung.summary.window.steady)?;
    let text = format!(
        "Whether the server keeps up with {rate:.2} requests a second is not known: too few of them ended while they \
         were offered. Give a longer --budget, or ask for shorter replies."
    );
    Some(Finding::new(FindingKind::NotConfirmed, text))
}

/// What a request takes on average where throughput is all but the highest, at the least concurrency of such rungs.
fn request_time(rungs: &[RungReport]) -> Duration {
    let throughput = |rung: &RungReport| rung.summary.rates.output_tokens_per_s;
    let most = rungs.iter().map(throughput).fold(0.0, f64::max);
    let saturated = rungs.iter().filter(|rung| throughput(rung) >= 0.95 * most);
    let least = saturated.min_by_key(|rung| rung.summary.concurrency);
    let mean = least.and_then(|rung| rung.summary.e2e_ms.as_ref()).map_or(0.0, |e2e| e2e.mean / 1e3);
    Duration::from_secs_f64(mean)
}

/// What the search looks at of a rung.
fn point(rung: &RungReport, client_ceiling: &ClientCeiling) -> RungPoint {
    let summary = &rung.summary;
    let outcomes = &summary.outcomes;
    let slo = summary.slo.as_ref();
    RungPoint {
        concurrency: summary.concurrency,
        throughput: summary.rates.output_tokens_per_s,
        half_width: summary.output_half_width,
        tokens_per_request: summary.tokens.output as f64 / outcomes.success.max(1) as f64,
        requests: outcomes.total(),
        failed: outcomes.failed(),
        refused: outcomes.http_429 + outcomes.http_503,
        slo_requests: slo.map_or(0, |slo| slo.requests),
        ttft_violations: slo.map_or(0, |slo| slo.ttft_violations),
        tpot_violations: slo.map_or(0, |slo| slo.tpot_violations),
        client_limited: !client_ceiling.has_headroom_for(summary.chunks_per_s),
    }
}

fn offered_point(share: f64, rate: f64, rung: &RungReport) -> OfferedPoint {
    let summary = &rung.summary;
    let slo = summary.slo.as_ref();
    let growth = summary.open_loop.and_then(|facts| facts.growth);
    OfferedPoint {
        share,
        rate,
        requests: summary.outcomes.total(),
        failed: summary.outcomes.failed(),
        slo_requests: slo.map_or(0, |slo| slo.requests),
        ttft_violations: slo.map_or(0, |slo| slo.ttft_violations),
        tpot_violations: slo.map_or(0, |slo| slo.tpot_violations),
        keeps_up: growth.is_none_or(|growth| growth.is_flat),
    }
}

fn nothing_works(rungs: &[RungReport]) -> BenchError {
    let mut samples = rungs.iter().flat_map(|rung| &rung.failure_samples);
    let silent = "no request ended with a token before the time was up";
    BenchError::NothingWorks(samples.next().cloned().unwrap_or_else(|| silent.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;

    #[test]
    fn arrivals_that_were_offered_too_shortly_are_said() {
        let mut offered = sample::report().offered;
        offered.iter_mut().for_each(|offered| offered.rung.summary.window.steady = true);
        assert_eq!(unknown_offer(&offered), None);
        let last = offered.last_mut().expect("an offer");
        (last.rate, last.rung.summary.window.steady) = (12.5, false);
        let finding = unknown_offer(&offered).expect("a finding");
        assert_eq!(finding.kind, FindingKind::NotConfirmed);
        assert!(finding.text.contains("12.50 requests a second"), "{}", finding.text);
    }

    #[test]
    fn the_time_of_a_request_is_that_at_saturation() {
        let rung = |concurrency, throughput, e2e_ms| {
            let mut rung = sample::report().rungs[0].clone();
            rung.summary.concurrency = concurrency;
            rung.summary.rates.output_tokens_per_s = throughput;
            rung.summary.e2e_ms.as_mut().expect("latencies").mean = e2e_ms;
            rung
        };
        let rungs = [rung(64, 101.0, 9000.0), rung(1, 20.0, 500.0), rung(8, 100.0, 1200.0), rung(256, 90.0, 30_000.0)];
        assert_eq!(request_time(&rungs), Duration::from_millis(1200));
        assert_eq!(request_time(&[]), Duration::ZERO);
    }
}
