//! What a server says of itself while it is measured: its `/metrics`, its process's memory, and its GPUs where it runs
//! on this machine. A server that says nothing is measured all the same.

use std::collections::HashMap;
use std::convert::Infallible;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Url;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{MissedTickBehavior, interval};

use crate::endpoint::Asking;
use crate::series::{GpuSample, ServerSample, ServerSide, TtftSplit};
use crate::summary::RungSummary;

/// How often the server is looked at, and how long it may take to answer at most.
const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);
/// No metrics page is longer.
const LARGEST_PAGE: usize = 8 << 20;

/// What servers call the same; the first that is there counts.
const RUNNING: &[&str] = &[
    "plimsoll:num_requests_running",
    "vllm:num_requests_running",
    "sglang:num_running_reqs",
    "llamacpp:requests_processing",
];
const WAITING: &[&str] = &[
    "plimsoll:num_requests_waiting",
    "vllm:num_requests_waiting",
    "sglang:num_queue_reqs",
    "llamacpp:requests_deferred",
];
const KV_USAGE: &[&str] = &[
    "plimsoll:kv_cache_usage_perc",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "llamacpp:kv_cache_usage_ratio",
];
const PREEMPTIONS: &[&str] = &["plimsoll:num_preemptions_total", "vllm:num_preemptions_total", "vllm:num_preemptions"];
const START_UP: &[&str] = &["plimsoll:startup_seconds"];
const RESIDENT: &[&str] = &["process_resident_memory_bytes"];
const QUEUE_TIME: &[&str] = &["plimsoll:request_queue_time_seconds", "vllm:request_queue_time_seconds"];
const PREFILL_TIME: &[&str] = &["plimsoll:request_prefill_time_seconds", "vllm:request_prefill_time_seconds"];

/// A metrics page: the sum over the labels of each name.
#[derive(Clone, Debug, Default, PartialEq)]
struct Page(HashMap<String, f64>);

impl Page {
    /// Prometheus' text format. Lines that are none of it are left out.
    fn parse(text: &str) -> Self {
        let mut sums = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap_or_default();
            // A label's value may hold spaces and braces; what stands behind the last brace does not.
            let rest = line.rsplit('}').next().unwrap_or(line);
            let value =
                if rest.len() == line.len() { rest.split_whitespace().nth(1) } else { rest.split_whitespace().next() };
            if let Some(value) = value.and_then(|value| value.parse::<f64>().ok()).filter(|value| value.is_finite()) {
                *sums.entry(name.to_owned()).or_insert(0.0) += value;
            }
        }
        Self(sums)
    }

    fn get(&self, names: &[&str]) -> Option<f64> {
        names.iter().find_map(|name| self.0.get(*name).copied())
    }

    fn is_known(&self) -> bool {
        [RUNNING, WAITING, KV_USAGE, QUEUE_TIME].iter().any(|names| self.get(names).is_some())
            || self.histogram(QUEUE_TIME).is_some()
    }

    /// Sum and count of a histogram.
    fn histogram(&self, names: &[&str]) -> Option<(f64, f64)> {
        let of = |name: &str, part| self.0.get(&format!("{name}_{part}")).copied();
        names.iter().find_map(|name| of(name, "sum").zip(of(name, "count")))
    }

    /// The mean of what a histogram took in since `before`, in milliseconds.
    fn mean_since(&self, before: &Self, names: &[&str]) -> Option<f64> {
        let ((sum, count), (old_sum, old_count)) = self.histogram(names).zip(before.histogram(names))?;
        // A server that was started anew counts from 0.
        (count > old_count && sum >= old_sum).then(|| 1e3 * (sum - old_sum) / (count - old_count))
    }

    fn sample(&self, at: Duration) -> ServerSample {
        ServerSample {
            at_s: at.as_secs_f64(),
            running: self.get(RUNNING),
            waiting: self.get(WAITING),
            kv_cache_usage: self.get(KV_USAGE),
            preemptions: self.get(PREEMPTIONS),
            rss_bytes: self.get(RESIDENT),
            gpus: Vec::new(),
        }
    }
}

/// Looks at one server.
#[derive(Debug)]
pub(crate) struct Telemetry {
    http: reqwest::Client,
    patience: Duration,
    /// None: it has no metrics that are known.
    url: Option<Url>,
    /// Of the server, where it is known.
    process: Option<u32>,
    gpus: Option<Gpus>,
}

/// What was seen during a run.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    before: Page,
    samples: Vec<ServerSample>,
}

impl Telemetry {
    /// None: there is nothing to be seen.
    pub(crate) async fn of(asking: Asking<'_>, process: Option<u32>) -> Option<Self> {
        let url = asking.base.join("metrics");
        let local = url.host_str().is_some_and(|host| matches!(host, "localhost" | "127.0.0.1" | "[::1]"));
        let mut telemetry = Self {
            http: asking.http.clone(),
            patience: asking.patience.min(PATIENCE),
            url: Some(url),
            process,
            gpus: if local { Gpus::watch() } else { None },
        };
        if !telemetry.page().await.is_some_and(|page| page.is_known()) {
            telemetry.url = None;
        }
        let sees = telemetry.url.is_some() || process.is_some() || telemetry.gpus.is_some();
        sees.then_some(telemetry)
    }

    /// What it is like before a run.
    pub(crate) async fn begin(&self) -> Seen {
        Seen { before: self.page().await.unwrap_or_default(), samples: Vec::new() }
    }

    /// Looks at the server once a second, until dropped.
    pub(crate) async fn watch(&self, seen: &mut Seen) -> Infallible {
        let began = Instant::now();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let page = self.page().await;
            let mut sample = page.unwrap_or_default().sample(began.elapsed());
            sample.rss_bytes = self.process.and_then(resident_bytes).or(sample.rss_bytes);
            sample.gpus = self.gpus.as_ref().map(Gpus::latest).unwrap_or_default();
            if sample != (ServerSample { at_s: sample.at_s, ..ServerSample::default() }) {
                seen.samples.push(sample);
            }
        }
    }

    /// What was seen of the run that `summary` is of.
    pub(crate) async fn end(&self, seen: Seen, summary: &RungSummary) -> Option<ServerSide> {
        let after = self.page().await.unwrap_or_default();
        let ttft_split = split(&seen.before, &after, summary.ttft_ms.as_ref().map(|ttft| ttft.mean));
        let preemptions = after.get(PREEMPTIONS).zip(seen.before.get(PREEMPTIONS));
        let preemptions = preemptions.map(|(now, before)| (now - before).max(0.0) as u64);
        let start_up_s = after.get(START_UP);
        let side = ServerSide { ttft_split, samples: seen.samples, preemptions, start_up_s };
        (side != ServerSide::default()).then_some(side)
    }

    async fn page(&self) -> Option<Page> {
        let request = self.http.get(self.url.clone()?).timeout(self.patience);
        let mut response = request.send().await.ok()?.error_for_status().ok()?;
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.ok()? {
            body.extend_from_slice(&piece);
            if body.len() > LARGEST_PAGE {
                return None;
            }
        }
        Some(Page::parse(&String::from_utf8_lossy(&body)))
    }
}

fn split(before: &Page, after: &Page, ttft_ms: Option<f64>) -> Option<TtftSplit> {
    let queue_ms = after.mean_since(before, QUEUE_TIME)?;
    let prefill_ms = after.mean_since(before, PREFILL_TIME)?;
    // The server's means are of the whole run, the client's of its steady part: where the rest is small, it may come out
    // a little below 0.
    Some(TtftSplit { queue_ms, prefill_ms, network_ms: (ttft_ms? - queue_ms - prefill_ms).max(0.0) })
}

/// Resident memory of a process on this machine, by /proc.
fn resident_bytes(process: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.split_whitespace().next()?.parse::<f64>().ok().map(|kib| 1024.0 * kib)
}

/// The GPUs of this machine, as `nvidia-smi` tells once a second. Where there is none, nothing comes.
#[derive(Debug)]
struct Gpus {
    latest: Arc<Mutex<Vec<GpuSample>>>,
    /// Ends when this is dropped.
    _child: Child,
}

impl Gpus {
    fn watch() -> Option<Self> {
        let mut command = Command::new("nvidia-smi");
        command.args(["--query-gpu=index,utilization.gpu,memory.used,clocks.sm,power.draw"]);
        command.args(["--format=csv,noheader,nounits", "--loop-ms=1000"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().ok()?;
        let mut lines = BufReader::new(child.stdout.take()?).lines();
        let latest = Arc::new(Mutex::new(Vec::new()));
        let writing = latest.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(sample) = gpu(&line) {
                    let mut samples = writing.lock().unwrap_or_else(PoisonError::into_inner);
                    samples.retain(|old: &GpuSample| old.index != sample.index);
                    samples.push(sample);
                    samples.sort_by_key(|sample| sample.index);
                }
            }
        });
        Some(Self { latest, _child: child })
    }

    fn latest(&self) -> Vec<GpuSample> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A line of `nvidia-smi`: index, percent, MiB, MHz, W; what it does not know is `[N/A]`.
fn gpu(line: &str) -> Option<GpuSample> {
    let mut fields = line.split(',').map(str::trim);
    let index = fields.next()?.parse().ok()?;
    let mut next = || fields.next().and_then(|field| field.parse::<f64>().ok());
    Some(GpuSample {
        index,
        utilization: next().map(|percent| percent / 100.0),
        memory_bytes: next().map(|mebibytes| mebibytes * f64::from(1 << 20)),
        sm_clock_mhz: next(),
        power_w: next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP x y\n# TYPE x gauge\nvllm:num_requests_running{model_name=\"a } b\"} 3\n\
        plimsoll:num_requests_running{model_name=\"m\"} 4.0\nplimsoll:num_requests_waiting 2\n\
        plimsoll:request_queue_time_seconds_bucket{le=\"+Inf\"} 10\nplimsoll:request_queue_time_seconds_sum 1.5\n\
        plimsoll:request_queue_time_seconds_count 10\nplimsoll:num_preemptions_total{a=\"1\"} 1\n\
        plimsoll:num_preemptions_total{a=\"2\"} 2 1700000000\nplimsoll:kv_cache_usage_perc NaN\nnonsense\n";

    #[test]
    fn a_page_is_read_by_the_first_name_that_is_there() {
        let page = Page::parse(PAGE);
        let sample = page.sample(Duration::from_secs(2));
        assert_eq!((sample.running, sample.waiting, sample.preemptions), (Some(4.0), Some(2.0), Some(3.0)));
        assert_eq!((sample.kv_cache_usage, sample.rss_bytes, sample.at_s), (None, None, 2.0));
        assert!(page.is_known() && !Page::parse("go_goroutines 7\n").is_known());
        assert_eq!(Page::parse("vllm:num_requests_running{model_name=\"a } b\"} 3").get(RUNNING), Some(3.0));
    }

    #[test]
    fn the_first_token_s_time_is_split_by_what_came_in_meanwhile() {
        let page = |queue: f64, prefill: f64, count: u32| {
            Page::parse(&format!(
                "vllm:request_queue_time_seconds_sum {queue}\nvllm:request_queue_time_seconds_count {count}\n\
                 vllm:request_prefill_time_seconds_sum {prefill}\nvllm:request_prefill_time_seconds_count {count}\n"
            ))
        };
        let before = page(5.0, 1.0, 50);
        let found = split(&before, &page(6.0, 1.5, 60), Some(155.0)).expect("ten requests");
        assert!((found.queue_ms - 100.0).abs() < 1e-9 && (found.prefill_ms - 50.0).abs() < 1e-9, "{found:?}");
        assert!((found.network_ms - 5.0).abs() < 1e-9, "{found:?}");
        assert_eq!(split(&before, &before, Some(1.0)), None, "nothing came in");
        assert_eq!(split(&before, &page(0.1, 0.1, 1), Some(1.0)), None, "it was started anew");
    }

    #[test]
    fn gpus_tell_what_they_know() {
        let sample = gpu("1, 87, 40960, 1980, 650.25").expect("a line");
        assert_eq!((sample.index, sample.utilization, sample.power_w), (1, Some(0.87), Some(650.25)));
        assert_eq!(sample.memory_bytes, Some(40960.0 * 1_048_576.0));
        assert_eq!(gpu("0, [N/A], 5, [N/A], [N/A]").expect("a line").utilization, None);
        assert_eq!(gpu("NVIDIA-SMI has failed"), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 1e6));
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
