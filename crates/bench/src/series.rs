//! A run over time: what the client saw and, where the server tells, what the server was doing.

use serde::{Deserialize, Serialize};

use crate::load::RunLog;
use crate::window::{self, Window};

/// Slices of a run.
const SLICES: usize = 60;

/// One of the equal slices of a run, from its start to its end; what lies outside the measured window is in it, too.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TimeSlice {
    /// Seconds from the start of the run to the middle of the slice.
    pub at_s: f64,
    pub output_tokens_per_s: f64,
    /// Requests that had been due and had not ended, at the middle of the slice.
    pub in_flight: u32,
    /// Requests that ended in the slice, well and not.
    pub succeeded: u32,
    pub failed: u32,
}

/// What the server said of itself during a run, from its `/metrics`; and its GPUs, where it runs on this machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServerSide {
    /// None: the server has no such counters.
    pub ttft_split: Option<TtftSplit>,
    pub samples: Vec<ServerSample>,
    /// Requests that were preempted during the run.
    pub preemptions: Option<u64>,
}

/// What a server was before it was put under load: how it started, and what memory it held.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServerStart {
    /// The parts of its start, as its `/metrics` name them; empty: it does not tell.
    pub parts: Vec<StartPart>,
    /// Bytes of resident memory of its process, and of memory in use on its GPUs.
    pub rss_bytes: Option<f64>,
    pub gpu_memory_bytes: Option<f64>,
}

impl ServerStart {
    /// Seconds of all its parts. None: it does not tell.
    pub fn seconds(&self) -> Option<f64> {
        (!self.parts.is_empty()).then(|| self.parts.iter().map(|part| part.seconds).sum())
    }
}

/// One part of a start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StartPart {
    pub name: String,
    pub seconds: f64,
}

/// Where the time to the first token goes, on average over the requests of a run. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TtftSplit {
    /// In the server, before the request's first step.
    pub queue_ms: f64,
    /// In the server, from the first step to the first token.
    pub prefill_ms: f64,
    /// The rest of what the client saw: network, HTTP, tokenizing, and the first token's way back.
    pub network_ms: f64,
}

/// One look at the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ServerSample {
    /// Seconds from the start of the run.
    pub at_s: f64,
    /// Requests being worked on (the batch size of a decode step), and waiting.
    pub running: Option<f64>,
    pub waiting: Option<f64>,
    /// 0 to 1.
    pub kv_cache_usage: Option<f64>,
    /// Since the server started.
    pub preemptions: Option<f64>,
    /// Milliseconds that a step took on average since the sample before.
    #[serde(default)]
    pub step_ms: Option<f64>,
    /// Resident memory of the server's process.
    pub rss_bytes: Option<f64>,
    /// Processors that the server's process kept busy on average since the sample before.
    #[serde(default)]
    pub cpu_cores: Option<f64>,
    /// The GPUs on which the server is known to compute, by index; empty where there are none, or they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuSample>,
    /// Where those are not known, all GPUs of this machine, whoever uses them: shown, and taken for nothing of the
    /// server's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_gpus: Vec<GpuSample>,
}

/// One GPU at one moment, as NVIDIA's management library tells. None: it does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GpuSample {
    /// By NVML, as `nvidia-smi` shows it; CUDA may number otherwise.
    pub index: u32,
    /// 0 to 1.
    pub utilization: Option<f64>,
    /// In use, whoever uses it.
    pub memory_bytes: Option<f64>,
    pub sm_clock_mhz: Option<f64>,
    pub power_w: Option<f64>,
    /// Since the driver was loaded.
    #[serde(default)]
    pub energy_j: Option<f64>,
}

impl ServerSample {
    /// The sum over the server's GPUs of what each of them tells. None: one of them does not, or there is none.
    pub(crate) fn gpu_sum(&self, value: impl Fn(&GpuSample) -> Option<f64>) -> Option<f64> {
        sum(&self.gpus, value)
    }

    /// The mean over the GPUs, as there.
    pub(crate) fn gpu_mean(&self, value: impl Fn(&GpuSample) -> Option<f64>) -> Option<f64> {
        self.gpu_sum(value).map(|sum| sum / self.gpus.len() as f64)
    }
}

/// The sum of what each GPU tells. None: one of them does not, or there is none.
pub(crate) fn sum(gpus: &[GpuSample], value: impl Fn(&GpuSample) -> Option<f64>) -> Option<f64> {
    let values: Option<Vec<f64>> = gpus.iter().map(value).collect();
    values.filter(|values| !values.is_empty()).map(|values| values.iter().sum())
}

/// The run in equal slices; none if it took no time.
pub(crate) fn series(log: &RunLog) -> Vec<TimeSlice> {
    let whole = window::whole_run(log);
    let width = whole.seconds() / SLICES as f64;
    if log.records.is_empty() || width <= 0.0 {
        return Vec::new();
    }
    let rates = window::output_rates(log, &whole, SLICES);
    let mut slices: Vec<TimeSlice> = (0..SLICES)
        .map(|i| TimeSlice {
            at_s: (i as f64 + 0.5) * width,
            output_tokens_per_s: rates[i],
            in_flight: 0,
            succeeded: 0,
            failed: 0,
        })
        .collect();
    let counts = in_flight(log, &whole, SLICES);
    slices.iter_mut().zip(counts).for_each(|(slice, count)| slice.in_flight = count);
    for record in &log.records {
        let slice = &mut slices[((record.done.as_secs_f64() / width) as usize).min(SLICES - 1)];
        *(if record.is_success() { &mut slice.succeeded } else { &mut slice.failed }) += 1;
    }
    slices
}

/// How many requests were due and not over at the middle of each of `slices` equal parts of the window.
pub(crate) fn in_flight(log: &RunLog, window: &Window, slices: usize) -> Vec<u32> {
    let mut starts: Vec<_> = log.records.iter().map(|record| record.scheduled).collect();
    let mut ends: Vec<_> = log.records.iter().map(|record| record.done).collect();
    starts.sort_unstable();
    ends.sort_unstable();
    let width = (window.end - window.start) / slices as u32;
    let before = |times: &[std::time::Duration], at| times.partition_point(|time| *time <= at);
    (0..slices as u32)
        .map(|i| window.start + width * i + width / 2)
        .map(|at| (before(&starts, at) - before(&ends, at)) as u32)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::Outcome;
    use crate::record::fixture::{failure, success};

    #[test]
    fn a_run_is_cut_into_what_happened_when() {
        // Two requests for the first half, one of which is there for the second as well, and a failure at the end.
        let records = vec![success(0.0, 0.1, 0.5, 11), success(0.0, 0.1, 0.1, 50), failure(5.9, 0.1, Outcome::Timeout)];
        let ended = Duration::from_secs(6);
        let log = RunLog { ended, ..RunLog::of(2, records, Duration::ZERO, ended) };
        let slices = series(&log);
        assert_eq!(slices.len(), 60);
        assert_eq!((slices[10].in_flight, slices[55].in_flight), (2, 0));
        assert_eq!(slices.iter().map(|slice| slice.succeeded).sum::<u32>(), 2);
        assert_eq!(slices.iter().map(|slice| slice.failed).sum::<u32>(), 1);
        let tokens: f64 = slices.iter().map(|slice| slice.output_tokens_per_s * 0.1).sum();
        assert!((tokens - 61.0).abs() < 1e-3, "{tokens}");
    }
}
