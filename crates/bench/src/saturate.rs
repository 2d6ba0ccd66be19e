//! Feeds the saturation search: measures the rungs it asks for until it has an answer or the time is up.

use std::time::{Duration, Instant};

use crate::config::{RungRule, SaturateConfig};
use crate::error::{BenchError, Result};
use crate::load::Live;
use crate::preflight::{self, ClientCeiling};
use crate::report::{RungReport, SATURATION_SCHEMA, SaturationReport, unix_now};
use crate::run::{Progress, Rung, Target, TargetConfig, running};
use crate::search::{Answer, RungPoint, Step, answer_now, next_step};
use crate::stats;

/// A rung in which too little completed goes on up to so many times its longest time.
const EXTENSION: u32 = 3;
/// Requests for each client that must complete even if the rung's time is up.
const LEAST_COMPLETIONS_PER_CLIENT: usize = 2;
/// The clients of a rung start spread over the last rung's mean request time, but no longer than this.
const LONGEST_RAMP: Duration = Duration::from_secs(5);
/// What the last rung is given at least when the budget is nearly spent.
const SHORTEST_RUNG: Duration = Duration::from_secs(1);
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Measures the client, then drives the endpoint up the ladder and bisects, within the budget. `progress` is called a few times a second.
///
/// Must be called inside a tokio runtime with time and I/O enabled. Dropping the future ends the search.
///
/// # Errors
/// What keeps the search from starting (a bad configuration, an unreachable server, prompts that cannot be read), and
/// a server that serves nothing even at concurrency 1. A server that breaks later ends the search, not the report.
pub async fn saturate(config: &SaturateConfig, progress: impl Fn(&Progress)) -> Result<SaturationReport> {
    config.validate()?;
    let started_unix_s = unix_now();
    let began = Instant::now();
    let client_ceiling = preflight::measure_client_ceiling(config.null_server_url.as_deref()).await?;
    progress(&Progress::Preflight(client_ceiling.clone()));
    let target = Target::prepare(TargetConfig {
        endpoint: &config.endpoint,
        generation: &config.generation,
        workload: &config.workload,
        connect_timeout: config.connect_timeout,
        request_timeout: config.request_timeout,
        requests: u64::MAX,
        slo: config.search.slo,
    })
    .await?;
    progress(&Progress::Ready { model: target.model.clone(), workload: target.workload.clone() });
    target.warm_up(config.warmup).await;
    let clock = Budget { began, all: config.budget };
    let (rungs, answer) = search(config, &target, &client_ceiling, clock, &progress).await?;
    Ok(SaturationReport {
        schema: SATURATION_SCHEMA.to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_s,
        model: target.model,
        config: config.clone(),
        workload: target.workload,
        client_ceiling,
        answer,
        rungs,
        offered: Vec::new(),
        rechecks: Vec::new(),
        findings: Vec::new(),
    })
}

/// The time for the whole search.
#[derive(Clone, Copy)]
struct Budget {
    began: Instant,
    all: Duration,
}

impl Budget {
    fn left(&self) -> Duration {
        self.all.saturating_sub(self.began.elapsed())
    }
}

async fn search(
    config: &SaturateConfig,
    target: &Target,
    client_ceiling: &ClientCeiling,
    budget: Budget,
    progress: &impl Fn(&Progress),
) -> Result<(Vec<RungReport>, Answer)> {
    let mut rungs: Vec<RungReport> = Vec::new();
    let mut points: Vec<RungPoint> = Vec::new();
    let answer = loop {
        let step = next_step(&config.search, &points).ok_or_else(|| nothing_works(&rungs))?;
        let concurrency = match step {
            Step::Done(answer) => break answer,
            Step::Measure(concurrency) => concurrency,
        };
        if !points.is_empty() && budget.left().is_zero() {
            break answer_now(&config.search, &points).ok_or_else(|| nothing_works(&rungs))?;
        }
        let rung = measure(config, target, concurrency, rungs.last(), budget, progress).await;
        points.push(point(&rung, client_ceiling));
        progress(&Progress::Rung(Box::new(rung.clone())));
        rungs.push(rung);
    };
    rungs.sort_by_key(|rung| rung.summary.concurrency);
    Ok((rungs, answer))
}

async fn measure(
    config: &SaturateConfig,
    target: &Target,
    concurrency: u32,
    last: Option<&RungReport>,
    budget: Budget,
    progress: &impl Fn(&Progress),
) -> RungReport {
    let request_time = last.and_then(|rung| rung.summary.e2e_ms.as_ref()).map_or(0.0, |e2e| e2e.mean / 1e3);
    let rung = Rung {
        concurrency,
        max_requests: u64::MAX,
        max_duration: (config.rung.max_time * EXTENSION).min(budget.left().max(SHORTEST_RUNG)),
        ramp: Duration::from_secs_f64(request_time).min(LONGEST_RAMP).min(config.rung.max_time / 2),
    };
    let (mut shown, mut checked) = (Instant::now(), Instant::now());
    target
        .measure(rung, |live| {
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                progress(&running(concurrency, live));
            }
            // Looking at the precision all the time would stop at its luckiest moment.
            if checked.elapsed() < (live.now / 10).max(Duration::from_secs(1)).min(config.rung.max_time / 4) {
                return false;
            }
            checked = Instant::now();
            is_enough(&config.rung, concurrency, live)
        })
        .await
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
    let rates = live.timeline.rates(ramp_end, live.now);
    let steady = &rates[stats::transient(&rates)..];
    match (stats::mean(steady), stats::half_width(steady)) {
        (Some(mean), Some(half_width)) => half_width <= rule.half_width * mean,
        _ => false,
    }
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
        requests: outcomes.total(),
        failed: outcomes.failed(),
        refused: outcomes.http_429 + outcomes.http_503,
        slo_requests: slo.map_or(0, |slo| slo.requests),
        ttft_violations: slo.map_or(0, |slo| slo.ttft_violations),
        tpot_violations: slo.map_or(0, |slo| slo.tpot_violations),
        client_limited: !client_ceiling.has_headroom_for(summary.chunks_per_s),
    }
}

fn nothing_works(rungs: &[RungReport]) -> BenchError {
    let mut samples = rungs.iter().flat_map(|rung| &rung.failure_samples);
    BenchError::NothingWorks(samples.next().cloned().unwrap_or_else(|| "no reply carried a token".to_owned()))
}
