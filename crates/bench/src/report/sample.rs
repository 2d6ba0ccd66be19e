//! A report of a server that never was, with everything in it that a report can hold, for the tests of what reads one.

use std::sync::LazyLock;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::arrivals::{Arrivals, Schedule};
use crate::load::RunLog;
use crate::preflight::ClientCeiling;
use crate::record::fixture::{failure, success};
use crate::record::{Outcome, RequestRecord};
use crate::report::{OfferedReport, RungReport, SATURATION_SCHEMA, SaturationReport, WorkloadFacts};
use crate::search::{Answer, Breakpoint, Constraint, Drift, Fall, OpenLoopAnswer, OpenLoopFault, Recheck, Verdict};
use crate::selection::LengthSource;
use crate::series::{GpuSample, ServerSample, ServerSide, ServerStart, StartPart, TtftSplit};
use crate::slo::Slo;

/// Sequences that it runs at once, and output tokens a second that it makes at the most.
const SLOTS: f64 = 64.0;
const MOST: f64 = 1400.0;
const TOKENS: u32 = 80;
const SECONDS: f64 = 12.0;
const SLO: Slo = Slo { ttft_ms: Some(2000.0), tpot_ms: Some(100.0), percentile: 99.0 };

/// Seconds a token and to the first one, with `n` requests in flight.
fn times(n: f64) -> (f64, f64) {
    let running = n.min(SLOTS);
    let tpot = 0.004 + running / MOST * 0.9;
    let queue = (n - SLOTS).max(0.0) * f64::from(TOKENS) / MOST;
    (tpot, 0.015 + 0.0012 * running + queue)
}

fn noisy(rng: &mut StdRng, value: f64) -> f64 {
    value * (0.9 + 0.25 * rng.random::<f64>().powi(3))
}

fn reply(rng: &mut StdRng, at: f64, n: f64) -> RequestRecord {
    let (tpot, ttft) = times(n);
    if n > 200.0 && rng.random::<f64>() < 0.08 {
        let outcome = if rng.random() { Outcome::TooManyRequests } else { Outcome::Timeout };
        return RequestRecord { detail: Some("429: <b>slow</b> down".to_owned()), ..failure(at, ttft, outcome) };
    }
    success(at, noisy(rng, ttft), noisy(rng, tpot), TOKENS)
}

fn rung(n: u32, seed: u64) -> RungReport {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut records = Vec::new();
    let (tpot, ttft) = times(n.into());
    let span = SECONDS.max(4.0 * (ttft + tpot * f64::from(TOKENS)));
    let mut first_idle = f64::MAX;
    for client in 0..n {
        let mut at = f64::from(client) / f64::from(n);
        while at < span {
            let record = reply(&mut rng, at, n.into());
            at = record.done.as_secs_f64();
            records.push(record);
        }
        first_idle = first_idle.min(at);
    }
    let ended = records.iter().map(|record| record.done).max().unwrap_or_default();
    let log = RunLog { ended, ..RunLog::of(n, records, Duration::from_secs(1), Duration::from_secs_f64(first_idle)) };
    with_server(RungReport::new(&log, &SLO), f64::from(n))
}

fn with_server(mut rung: RungReport, n: f64) -> RungReport {
    let running = n.min(SLOTS);
    let watts = 200.0 + 400.0 * running / SLOTS;
    let sample = |index: u32| ServerSample {
        at_s: f64::from(index),
        running: Some(running - f64::from(index % 3).min(running - 1.0)),
        waiting: Some((n - SLOTS).max(0.0)),
        kv_cache_usage: Some(running / SLOTS * 0.8),
        gpus: vec![GpuSample {
            index: 0,
            utilization: Some(0.5 + 0.5 * running / SLOTS),
            memory_bytes: Some(6e10),
            sm_clock_mhz: Some(1700.0 + f64::from(index % 3)),
            power_w: Some(watts + f64::from(index % 5)),
            energy_j: Some(watts * f64::from(index)),
        }],
        host_gpus: Vec::new(),
        step_ms: Some(1e3 * times(n).0),
        preemptions: Some(if n > SLOTS { f64::from(index / 3) } else { 0.0 }),
        rss_bytes: Some(2.1e9 + 1e6 * n),
        cpu_cores: Some(0.3 + running / 100.0),
    };
    rung.server = Some(ServerSide {
        ttft_split: Some(TtftSplit {
            queue_ms: (n - SLOTS).max(0.0) * 50.0,
            prefill_ms: 12.0 + n.min(SLOTS),
            network_ms: 3.0,
        }),
        samples: (0..rung.summary.duration_s as u32).map(sample).collect(),
        preemptions: Some(if n > SLOTS { 3 } else { 0 }),
    });
    rung
}

/// Poisson arrivals at this share of the capacity.
fn offered(share: f64) -> OfferedReport {
    let rate = share * MOST / f64::from(TOKENS);
    let mut rng = StdRng::seed_from_u64((share * 100.0) as u64);
    let span = Duration::from_secs(30);
    let arrivals = Arrivals::Poisson { rate };
    let busy = 40.0 / (1.05 - share.min(1.0));
    let records: Vec<_> = Schedule::new(arrivals, 7, span, &[])
        .take_while(|at| *at < span)
        .map(|at| reply(&mut rng, at.as_secs_f64(), (40.0 + busy / 10.0).min(180.0)))
        .collect();
    let ended = records.iter().map(|record| record.done).max().unwrap_or(span);
    let log = RunLog { ended, arrivals, ..RunLog::of(4096, records, Duration::ZERO, span) };
    OfferedReport { share, rate, rung: RungReport::new(&log, &SLO) }
}

fn part((name, seconds): (&str, f64)) -> StartPart {
    StartPart { name: name.to_owned(), seconds }
}

pub(crate) fn report() -> SaturationReport {
    static SAMPLE: LazyLock<SaturationReport> = LazyLock::new(made);
    SAMPLE.clone()
}

fn made() -> SaturationReport {
    let ladder = [1, 2, 4, 8, 16, 32, 40, 48, 56, 64, 64, 96, 128, 160, 256];
    let mut config = crate::SaturateConfig::new("http://127.0.0.1:8000");
    config.search.slo = SLO;
    let rungs: Vec<RungReport> = ladder.iter().zip(0..).map(|(n, seed)| rung(*n, seed)).collect();
    let rate = |n: u32| {
        let rung = rungs.iter().find(|rung| rung.summary.concurrency == n).expect("of the ladder");
        (rung.summary.rates.output_tokens_per_s, rung.summary.output_half_width)
    };
    let recheck = |n: u32, change: f64| Recheck {
        concurrency: n,
        before: rate(n).0,
        before_half_width: rate(n).1,
        after: rate(n).0 * (1.0 + change),
        after_half_width: rate(n).1,
        change,
        has_changed: false,
    };
    SaturationReport {
        schema: SATURATION_SCHEMA.to_owned(),
        tool_version: "0".to_owned(),
        started_unix_s: 1_795_305_900,
        model: "sample-<script>alert(1)</script>-8b".to_owned(),
        config,
        server_start: Some(ServerStart {
            parts: [("open", 0.3), ("weights", 3.1), ("cache", 0.4), ("capture", 0.7)].map(part).to_vec(),
            rss_bytes: Some(2.0e9),
            gpu_memory_bytes: Some(5.4e10),
        }),
        workload: WorkloadFacts {
            source: "bundled".to_owned(),
            loaded: 600,
            without_prompt: 0,
            examined: 580,
            used: 547,
            lengths: LengthSource::ServerTokenizer,
            mean_prompt_tokens: 24.5,
        },
        client_ceiling: ClientCeiling { events_per_s: 158_551.0, concurrency: 64, own_process: true },
        answer: Answer {
            verdict: Verdict::Plateaued,
            complete: true,
            saturation: 48,
            saturation_low: 40,
            saturation_high: 64,
            peak: 128,
            peak_throughput: rate(128).0,
            peak_half_width: rate(128).1,
            plateau_throughput: rate(128).0,
            plateau_half_width: rate(128).1,
            holds_at: 96,
            breakpoint: Some(Breakpoint {
                last_pass: 96,
                first_fail: 128,
                shown_pass: Some(64),
                shown_fail: Some(160),
                constraint: Constraint::Ttft,
                fall: Some(Fall::Smooth),
            }),
            open_loop: Some(OpenLoopAnswer {
                max_rate: MOST / f64::from(TOKENS),
                holds_rate: Some(0.9 * MOST / f64::from(TOKENS)),
                fails_rate: Some(MOST / f64::from(TOKENS)),
                fault: Some(OpenLoopFault::Backlog),
            }),
            drift: Some(Drift { at_one: recheck(1, 0.004), at_saturation: Some(recheck(48, -0.011)) }),
        },
        rungs,
        offered: [0.7, 0.8, 0.9, 1.0, 1.05].map(offered).to_vec(),
        rechecks: Vec::new(),
        findings: Vec::new(),
    }
}
