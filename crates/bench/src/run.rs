//! One measurement at one load, from a configuration to a report.

use std::time::{Duration, Instant};

use crate::arrivals::Arrivals;
use crate::config::BenchConfig;
use crate::descriptors;
use crate::error::Result;
use crate::findings;
use crate::progress::{Progress, Running, Stage};
use crate::report::{BENCH_SCHEMA, BenchReport, unix_now};
use crate::stop::Stop;
use crate::target::{Rung, Target, TargetConfig};

pub(crate) const SHOW_EVERY: Duration = Duration::from_millis(500);

/// Runs `config` against its endpoint. `progress` is called a few times a second; `stop` ends the run early, with a
/// report of what there is.
///
/// Must be called inside a tokio runtime with time and I/O enabled. Dropping the future ends the run.
///
/// # Errors
/// What keeps the run from starting: a bad configuration, an unreachable server, prompts that cannot be read. Failed
/// requests are no errors; they are in the report.
pub async fn run_until(config: &BenchConfig, stop: &Stop, progress: impl Fn(&Progress)) -> Result<BenchReport> {
    config.validate()?;
    let started_unix_s = unix_now();
    let target = TargetConfig {
        endpoint: &config.endpoint,
        generation: &config.generation,
        workload: &config.workload,
        connect_timeout: config.connect_timeout,
        request_timeout: config.request_timeout,
        requests: config.requests,
        slo: config.slo,
        stop: stop.clone(),
        check_usage: config.warmup > 0,
        process: None,
    };
    let target = Target::prepare(target, Duration::MAX).await?;
    progress(&target.ready());
    target.warm_up(config.warmup, config.request_timeout).await;
    let (concurrency, too_few) = descriptors::connections_for(config.concurrency);
    let rung = Rung {
        concurrency,
        arrivals: config.arrivals,
        seed: config.workload.seed,
        max_requests: config.requests,
        max_duration: config.max_duration,
        ramp: config.ramp,
        cut_after: None,
    };
    let stage = match config.arrivals {
        Arrivals::Closed => Stage::ClosedLoop,
        arrivals => Stage::OpenLoop { rate: arrivals.rate() },
    };
    let mut shown = Instant::now();
    let rung = target
        .measure(rung, |live| {
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                progress(&Progress::Running(Running::new(stage, concurrency, live, None)));
            }
            false
        })
        .await;
    progress(&Progress::Rung(stage, Box::new(rung.clone())));
    let of_rung = findings::of_rungs([&rung], config.workload.salt, stop);
    let of_trace = findings::of_trace(config.arrivals, &rung, target.workload.loaded);
    let findings = target.findings.into_iter().chain(too_few).chain(of_trace).chain(of_rung).collect();
    Ok(BenchReport {
        schema: BENCH_SCHEMA.to_owned(),
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_unix_s,
        model: target.model,
        config: config.clone(),
        workload: target.workload,
        rung,
        findings,
    })
}

/// [`run_until`] its end.
///
/// # Errors
/// As there.
pub async fn run(config: &BenchConfig, progress: impl Fn(&Progress)) -> Result<BenchReport> {
    run_until(config, &Stop::default(), progress).await
}
