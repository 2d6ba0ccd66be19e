//! A plan as text and as JSON.

use std::fmt;

use plimsoll_bench::{Answer, Constraint, Verdict};
use plimsoll_runner::MemoryPlan;
use plimsoll_sim::{Bound, Gpu};
use serde::Serialize;

use super::curve::{Binds, Curve, Rung};
use super::work::Sizes;
use super::{KvType, PlanOptions, Quantize};
use crate::bytes::ByteSize;
use crate::name::name_of;

/// Name and version of the JSON.
pub(super) const SCHEMA: &str = "plimsoll.plan/1";

/// What is predicted, and of what.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Plan {
    pub(super) schema: &'static str,
    pub(super) tool_version: &'static str,
    pub(super) model: String,
    /// Weights in all, and those that a token is multiplied with.
    pub(super) parameters: f64,
    pub(super) active_parameters: f64,
    pub(super) quantize: Option<Quantize>,
    pub(super) kv_cache_dtype: KvType,
    pub(super) gpu: GpuFacts,
    pub(super) workload: WorkloadFacts,
    pub(super) assumptions: Assumptions,
    pub(super) memory: MemoryFacts,
    /// What keeps throughput from rising where it no longer does.
    pub(super) binds: Binds,
    pub(super) answer: Answer,
    pub(super) rungs: Vec<Rung>,
}

/// As published.
#[derive(Clone, Debug, Serialize)]
pub(super) struct GpuFacts {
    pub(super) name: &'static str,
    pub(super) memory_bytes: u64,
    pub(super) bandwidth_bytes_per_s: f64,
    pub(super) bf16_flops: f64,
    pub(super) source: &'static str,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct WorkloadFacts {
    pub(super) min_input: u32,
    pub(super) max_input: u32,
    pub(super) output: u32,
}

/// What no datasheet says.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Assumptions {
    pub(super) bandwidth_efficiency: f64,
    pub(super) compute_efficiency: f64,
    pub(super) step_overhead_us: f64,
    pub(super) layer_overhead_us: f64,
    pub(super) host_step_us: f64,
    pub(super) host_seq_us: f64,
}

/// Bytes, and what they hold.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MemoryFacts {
    pub(super) usable: u64,
    pub(super) weights: u64,
    pub(super) workspace: u64,
    pub(super) overhead: u64,
    pub(super) kv_cache: u64,
    pub(super) max_model_len: u32,
    pub(super) max_num_seqs: u32,
    /// Requests that the KV cache holds at once: of the longest length there may be, and of this workload's longest.
    pub(super) full_length_requests: u32,
    pub(super) workload_requests: u64,
}

impl Plan {
    pub(super) fn new(
        options: &PlanOptions,
        gpu: &'static Gpu,
        sizes: &Sizes,
        memory: &MemoryPlan,
        curve: Curve,
    ) -> Self {
        let workload = WorkloadFacts { min_input: 1, max_input: 2 * options.input_len - 1, output: options.output_len };
        let assumed = &options.assumptions;
        Self {
            schema: SCHEMA,
            tool_version: env!("CARGO_PKG_VERSION"),
            model: options.model.as_deref().map(name_of).unwrap_or_default(),
            parameters: sizes.parameters,
            active_parameters: sizes.active_parameters(),
            quantize: options.quantize,
            kv_cache_dtype: options.kv_cache_dtype,
            gpu: GpuFacts {
                name: gpu.full_name,
                memory_bytes: gpu.memory_bytes,
                bandwidth_bytes_per_s: gpu.bandwidth,
                bf16_flops: gpu.bf16_flops,
                source: gpu.source,
            },
            workload,
            assumptions: Assumptions {
                bandwidth_efficiency: assumed.bandwidth_efficiency,
                compute_efficiency: assumed.compute_efficiency,
                step_overhead_us: assumed.step_overhead_us,
                layer_overhead_us: assumed.layer_overhead_us,
                host_step_us: assumed.host_step_us,
                host_seq_us: assumed.host_seq_us,
            },
            memory: MemoryFacts {
                usable: (gpu.memory_bytes as f64 * options.gpu_memory_utilization) as u64,
                weights: memory.weights,
                workspace: memory.workspace,
                overhead: memory.overhead,
                kv_cache: memory.kv_cache,
                max_model_len: memory.max_model_len,
                max_num_seqs: options.max_num_seqs,
                full_length_requests: memory.full_length_requests,
                workload_requests: requests_held(memory, workload.max_input + workload.output),
            },
            // Past the saturation point, what binds is what keeps throughput from rising.
            binds: curve.rungs.last().map_or(Binds::WeightBandwidth, |rung| rung.binds),
            answer: curve.answer,
            rungs: curve.rungs,
        }
    }

    pub(super) fn headline(&self) -> String {
        let n = self.answer.saturation;
        let found = match self.answer.verdict {
            Verdict::StillScaling => format!("still scaling at N = {n} concurrent"),
            Verdict::SloBroken => format!("breaks its latency limits before N = {n} concurrent, where it saturates"),
            _ => format!("saturates at N = {n} concurrent"),
        };
        format!("{} on {} {found}, by prediction", self.model, self.gpu.name)
    }

    pub(super) fn detail(&self) -> String {
        let Some(rung) = self.rungs.iter().find(|rung| rung.concurrency == self.answer.saturation) else {
            return String::new();
        };
        format!(
            "{:.0} output tok/s, {:.1} req/s, TTFT p50 {:.0} ms, TPOT p50 {:.1} ms; bound by {}",
            rung.output_tokens_per_s,
            rung.requests_per_s,
            rung.ttft_ms.p50,
            rung.tpot_ms.p50,
            self.binds.in_words()
        )
    }

    /// What the answer rests on, sentence by sentence.
    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = vec![format!(
            "The highest throughput is {:.0} output tok/s at N = {}; what keeps it from rising further is {}.",
            self.answer.peak_throughput,
            self.answer.peak,
            self.binds.in_words()
        )];
        if let Some(found) = self.answer.breakpoint {
            let why = match found.constraint {
                Constraint::Ttft => "first tokens come too late",
                Constraint::Tpot => "replies are too slow",
                _ => "requests fail",
            };
            findings.push(format!(
                "Service holds at N = {} and breaks at N = {}: {why}.",
                found.last_pass, found.first_fail
            ));
        }
        let MemoryFacts { usable, weights, workspace, overhead, kv_cache, .. } = self.memory;
        findings.push(format!(
            "Memory: weights {}, workspace of a step {}, libraries {}, KV cache {}, of {} that may be used.",
            ByteSize(weights),
            ByteSize(workspace),
            ByteSize(overhead),
            ByteSize(kv_cache),
            ByteSize(usable)
        ));
        let (requests, longest) = (self.memory.workload_requests, self.workload.max_input + self.workload.output);
        findings.push(format!(
            "The KV cache holds {requests} requests of {longest} tokens at once, or {} of {}; {} run together at most.",
            self.memory.full_length_requests, self.memory.max_model_len, self.memory.max_num_seqs
        ));
        findings
    }

    /// What is taken for granted.
    pub(super) fn assumptions(&self) -> Vec<String> {
        let assumed = &self.assumptions;
        let GpuFacts { memory_bytes, bandwidth_bytes_per_s, bf16_flops, source, .. } = self.gpu;
        vec![
            "Nothing here was measured: it is what the roofline and the assumptions below come to.".to_owned(),
            format!(
                "The GPU, by its maker ({source}): {:.0} GB, {:.0} GB/s, {:.1} dense bf16 TFLOP/s.",
                memory_bytes as f64 / 1e9,
                bandwidth_bytes_per_s / 1e9,
                bf16_flops / 1e12
            ),
            format!(
                "Assumed: {:.0}% of that bandwidth and {:.0}% of that arithmetic are reached; beside, the GPU takes {} us \
                 a step and {} us a layer; the host takes {} us a step and {} us for each sequence in it, while the GPU \
                 computes.",
                100.0 * assumed.bandwidth_efficiency,
                100.0 * assumed.compute_efficiency,
                assumed.step_overhead_us,
                assumed.layer_overhead_us,
                assumed.host_step_us,
                assumed.host_seq_us
            ),
            format!(
                "The model: {:.2} billion weights, of which a token is multiplied with {:.2}; weights in {}, keys \
                 and values in {}, arithmetic in bf16. Tokens choose among experts with equal chances.",
                self.parameters / 1e9,
                self.active_parameters / 1e9,
                self.quantize.map_or("the config's format", Quantize::name),
                self.kv_cache_dtype.name()
            ),
            format!(
                "The load: prompts of {} to {} tokens, {} tokens of output, each client sending its next request when \
                 its last has ended; no prefix is shared.",
                self.workload.min_input, self.workload.max_input, self.workload.output
            ),
        ]
    }
}

/// Sequences of `len` tokens that fit at once, in whole blocks; what a window frees is counted as free.
fn requests_held(memory: &MemoryPlan, len: u32) -> u64 {
    let held = memory.groups.iter().map(|group| {
        // A window reaches into one block more than it fills.
        let tokens = group.window.map_or(len, |window| len.min(window + memory.block_size));
        u64::from(group.num_blocks) / u64::from(tokens.div_ceil(memory.block_size).max(1))
    });
    held.min().unwrap_or(0)
}

/// A row of the table.
pub(super) const HEADERS: [&str; 10] =
    ["N", "req/s", "out tok/s", "of the roofline", "tok/s/user", "TTFT p50", "p95", "TPOT p50", "running", "bound by"];

impl Rung {
    pub(super) fn cells(&self) -> [String; HEADERS.len()] {
        [
            self.concurrency.to_string(),
            format!("{:.2}", self.requests_per_s),
            format!("{:.0}", self.output_tokens_per_s),
            format!("{:.0}%", 100.0 * self.output_tokens_per_s / self.roofline_tokens_per_s),
            if self.tpot_ms.p50 > 0.0 { format!("{:.1}", 1e3 / self.tpot_ms.p50) } else { "-".to_owned() },
            format!("{:.1}", self.ttft_ms.p50),
            format!("{:.1}", self.ttft_ms.p95),
            format!("{:.2}", self.tpot_ms.p50),
            format!("{:.1}", self.mean_running),
            format!("{} {:.0}%", self.binds.short(), 100.0 * self.share()),
        ]
    }

    /// Of the time, what went to what binds; all of it where memory or a limit does.
    fn share(&self) -> f64 {
        let bound = match self.binds {
            Binds::WeightBandwidth => Bound::WeightBandwidth,
            Binds::KvBandwidth => Bound::KvBandwidth,
            Binds::Compute => Bound::Compute,
            Binds::Overhead => Bound::Overhead,
            Binds::Host => Bound::Host,
            Binds::KvMemory | Binds::MaxNumSeqs => return 1.0,
        };
        self.time_shares[bound as usize]
    }
}

impl Binds {
    pub(super) fn short(self) -> &'static str {
        match self {
            Self::WeightBandwidth => "weights",
            Self::KvBandwidth => "KV reads",
            Self::Compute => "arithmetic",
            Self::Overhead => "overhead",
            Self::Host => "host",
            Self::KvMemory => "KV memory",
            Self::MaxNumSeqs => "max-num-seqs",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {}", self.headline(), self.detail())?;
        self.findings().iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
        writeln!(out)?;
        let rows: Vec<_> = self.rungs.iter().map(Rung::cells).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].len());
            cells.chain([HEADERS[column].len()]).max().unwrap_or(2)
        };
        let widths: Vec<usize> = (0..HEADERS.len()).map(width).collect();
        let mut line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
            writeln!(out, "| {} |", cells.join(" | "))
        };
        line(&HEADERS.map(str::to_owned))?;
        line(&widths.iter().map(|width| format!("{}:", "-".repeat(width - 1))).collect::<Vec<_>>())?;
        rows.iter().try_for_each(|row| line(row))?;
        writeln!(out)?;
        self.assumptions().iter().try_for_each(|assumption| writeln!(out, "{assumption}"))
    }
}
