//! One measurement at one load, from a configuration to a report.

use std::time::{Duration, Instant};

use crate::arrivals::Arrivals;
use crate::config::BenchConfig;
use crate::descriptors;
use crate::error::Result;
use crate::findings::{self, Finding, FindingKind};
use crate::load::Live;
use crate::progress::{Progress, Running, Stage};
use crate::record::Outcome;
use crate::report::{BENCH_SCHEMA, BenchReport, unix_now};
use crate::stop::Stop;
use crate::target::{Rung, Target, TargetConfig};

pub(crate) const SHOW_EVERY: Duration = Duration::from_millis(500);
/// A server to which every connection is lost for so long is gone: it is not asked a million times more.
const GONE_AFTER: Duration = Duration::from_secs(15);

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
        own_server: None,
        server_gpus: &[],
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
    let mut gone = false;
    let rung = target
        .measure(rung, |live| {
            gone |= is_gone(live);
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                progress(&Progress::Running(Running::new(stage, concurrency, live, None)));
            }
            gone
        })
        .await;
    progress(&Progress::Rung(stage, Box::new(rung.clone())));
    let of_rung = findings::of_rungs([&rung], config.workload.salt, stop);
    let unreachable = gone.then(|| {
        let text = format!("The server was lost: for {GONE_AFTER:?} no connection to it held, and no more was sent.");
        Finding::new(FindingKind::Unreachable, text)
    });
    let of_trace = findings::of_trace(config.arrivals, &rung, target.workload.loaded);
    let findings =
        target.findings.into_iter().chain(too_few).chain(unreachable).chain(of_trace).chain(of_rung).collect();
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

/// Whether for long nothing came but lost connections: no reply, and no token of one that is under way.
fn is_gone(live: &Live<'_>) -> bool {
    let lost = || live.records.iter().rev().take_while(|record| record.outcome == Outcome::Connection);
    let times = lost().map(|record| record.sent).min().zip(lost().map(|record| record.done).max());
    let Some((since, until)) = times else { return false };
    let rates = live.timeline.rates(since, live.now);
    // Between two losses, not since one: what was sent after it may be waiting for its first token.
    until.saturating_sub(since) >= GONE_AFTER && !rates.is_empty() && rates.iter().all(|rate| *rate == 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::fixture::{failure, success};
    use crate::timeline::Timeline;

    #[test]
    fn a_server_that_takes_no_connection_for_long_is_gone() {
        let timeline = Timeline::new(Duration::from_secs(100));
        let lost = |at| failure(at, 0.1, Outcome::Connection);
        let gone = |records: &[_], timeline: &Timeline| {
            is_gone(&Live { records, timeline, now: Duration::from_secs(50), ramp_end: None })
        };
        assert!(!gone(&[], &timeline));
        assert!(gone(&[success(0.0, 0.1, 0.1, 3), lost(30.0), lost(40.0), lost(49.0)], &timeline));
        assert!(!gone(&[success(0.0, 0.1, 0.1, 3), lost(40.0), lost(49.0)], &timeline), "not for long");
        assert!(!gone(&[success(0.0, 0.1, 0.1, 3), lost(30.0)], &timeline), "the next one holds, and waits");
        assert!(!gone(&[lost(30.0), success(41.0, 0.1, 0.1, 3), lost(49.0)], &timeline), "it came back");
        assert!(!gone(&[lost(30.0), failure(41.0, 0.1, Outcome::Unavailable), lost(49.0)], &timeline), "it answers");
        timeline.add(Duration::from_secs(45), 1);
        assert!(!gone(&[lost(30.0), lost(49.0)], &timeline), "others are being served");
    }
}
