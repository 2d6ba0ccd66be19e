//! The ladder of `plimsoll saturate`, climbed in virtual time.

use anyhow::{Context, Result, bail};
use plimsoll_bench::{Answer, Measured, RungPoint, SearchConfig, Step, nearest_rank, next_step};
use plimsoll_runner::MemoryPlan;
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_sim::{Bound, ClosedLoop, ClosedLoopReport, Efficiency, Roofline};
use serde::Serialize;

use super::PlanOptions;

/// What is asked of what.
pub(super) struct Load<'a> {
    pub(super) options: &'a PlanOptions,
    pub(super) memory: &'a MemoryPlan,
    pub(super) roofline: &'a Roofline,
}

/// What the ladder found.
pub(super) struct Curve {
    pub(super) answer: Answer,
    /// By concurrency, ascending.
    pub(super) rungs: Vec<Rung>,
}

/// One concurrency, predicted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Rung {
    pub(super) concurrency: u32,
    pub(super) output_tokens_per_s: f64,
    /// The same if the device did all that its datasheet says, and the host took no time.
    pub(super) roofline_tokens_per_s: f64,
    pub(super) requests_per_s: f64,
    pub(super) ttft_ms: Percentiles,
    pub(super) tpot_ms: Percentiles,
    /// Sequences in a step, on average over time.
    pub(super) mean_running: f64,
    /// 0 to 1, at the most.
    pub(super) most_kv_usage: f64,
    pub(super) preemptions: u64,
    pub(super) binds: Binds,
    /// Shares of the time, by what bounds each part of a step: reading weights, reading keys and values, arithmetic,
    /// the device's overhead, the host.
    pub(super) time_shares: [f64; Bound::ALL.len()],
}

/// Nearest-rank percentiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
}

/// What keeps throughput from being higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Binds {
    WeightBandwidth,
    KvBandwidth,
    Compute,
    Overhead,
    Host,
    /// The KV cache holds no more sequences.
    KvMemory,
    /// No more sequences may run at once.
    MaxNumSeqs,
}

impl Binds {
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::WeightBandwidth => "the bandwidth that reads the weights",
            Self::KvBandwidth => "the bandwidth that reads keys and values",
            Self::Compute => "arithmetic",
            Self::Overhead => "the overhead of a step",
            Self::Host => "the host",
            Self::KvMemory => "the memory for keys and values",
            Self::MaxNumSeqs => "--max-num-seqs",
        }
    }

    fn of(report: &ClosedLoopReport, clients: u32, max_num_seqs: u32) -> Self {
        if report.mean_running < 0.9 * f64::from(clients) {
            if report.preemptions > 0 || report.most_kv_usage > 0.95 {
                return Self::KvMemory;
            }
            if report.mean_running > 0.9 * f64::from(max_num_seqs) {
                return Self::MaxNumSeqs;
            }
        }
        match report.bound() {
            Bound::WeightBandwidth => Self::WeightBandwidth,
            Bound::KvBandwidth => Self::KvBandwidth,
            Bound::Compute => Self::Compute,
            Bound::Overhead => Self::Overhead,
            Bound::Host => Self::Host,
        }
    }
}

impl Load<'_> {
    /// Climbs the ladder as the search asks.
    pub(super) fn curve(&self) -> Result<Curve> {
        let slo = self.options.slo();
        let search = SearchConfig {
            max_concurrency: self.options.max_concurrency,
            slo,
            find_breakpoint: slo.ttft_ms.is_some() || slo.tpot_ms.is_some(),
            // The same load gives the same result each time.
            replicates: 1,
            ..SearchConfig::default()
        };
        let mut rungs: Vec<Rung> = Vec::new();
        // A plan has clients that wait for their answers, and a server that does not change.
        let mut measured = Measured { no_more_offers: true, no_more_rechecks: true, ..Measured::default() };
        let answer = loop {
            match next_step(&search, &measured).context("no concurrency is served at all")? {
                Step::Done(answer) => break *answer,
                Step::Measure(clients) => {
                    let before = measured.rungs.iter().find(|point| point.concurrency == clients).copied();
                    if let Some(point) = before {
                        measured.rungs.push(point);
                        continue;
                    }
                    let report = self.run(clients, self.roofline)?;
                    measured.rungs.push(self.point(clients, &report));
                    let ideal = Roofline { efficiency: Efficiency::IDEAL, ..self.roofline.clone() };
                    let ideal = self.run(clients, &ideal)?.output_tokens_per_s();
                    rungs.push(rung(clients, &report, ideal, self.options.max_num_seqs));
                }
                other => bail!("the search asks for {other:?}, which a plan has no answer to"),
            }
        };
        rungs.sort_by_key(|rung| rung.concurrency);
        Ok(Curve { answer, rungs })
    }

    fn run(&self, clients: u32, roofline: &Roofline) -> Result<ClosedLoopReport> {
        let options = self.options;
        let longest = 2 * options.input_len - 1;
        let mut scheduler = Scheduler::new(SchedulerConfig {
            cache: self.memory.cache_config(),
            max_num_seqs: options.max_num_seqs,
            max_num_batched_tokens: options.max_num_batched_tokens,
            max_model_len: self.memory.max_model_len,
            max_waiting: WaitingLimits {
                requests: clients + 1,
                prompt_tokens: u64::from(clients + 1) * u64::from(longest.max(self.memory.max_model_len)),
            },
            policy: Policy::Fcfs,
            prefix_caching: false,
        })?;
        let output = options.output_len..=options.output_len;
        let load = ClosedLoop { clients, prompt: 1..=longest, output, seed: u64::from(clients) };
        Ok(load.run(&mut scheduler, roofline)?)
    }

    fn point(&self, clients: u32, report: &ClosedLoopReport) -> RungPoint {
        let over = |limit: Option<f64>, values: &[f64]| {
            limit.map_or(0, |limit| values.iter().filter(|value| **value > limit).count() as u64)
        };
        RungPoint {
            concurrency: clients,
            throughput: report.output_tokens_per_s(),
            requests: report.requests,
            slo_requests: report.requests,
            ttft_violations: over(self.options.slo_ttft, &report.ttft_ms),
            tpot_violations: over(self.options.slo_tpot, &report.tpot_ms),
            ..RungPoint::default()
        }
    }
}

fn rung(clients: u32, report: &ClosedLoopReport, roofline_tokens_per_s: f64, max_num_seqs: u32) -> Rung {
    let total: f64 = report.bound_ns.iter().sum();
    Rung {
        concurrency: clients,
        output_tokens_per_s: report.output_tokens_per_s(),
        roofline_tokens_per_s,
        requests_per_s: report.requests_per_s(),
        ttft_ms: percentiles(&report.ttft_ms),
        tpot_ms: percentiles(&report.tpot_ms),
        mean_running: report.mean_running,
        most_kv_usage: report.most_kv_usage,
        preemptions: report.preemptions,
        binds: Binds::of(report, clients, max_num_seqs),
        time_shares: report.bound_ns.map(|ns| if total > 0.0 { ns / total } else { 0.0 }),
    }
}

fn percentiles(ascending: &[f64]) -> Percentiles {
    let rank = |percent: f64| nearest_rank(ascending, 0, percent).unwrap_or(0.0);
    Percentiles { p50: rank(50.0), p95: rank(95.0), p99: rank(99.0) }
}
