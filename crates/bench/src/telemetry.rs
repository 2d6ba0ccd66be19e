//! What a server says of itself while it is measured: its `/metrics`, its process's memory and processors, and its GPUs
//! where it runs on this machine. A server that says nothing is measured all the same.

mod gpus;
mod page;
mod process;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use plimsoll_endpoint::read_limited;
use reqwest::Url;
use tokio::time::{MissedTickBehavior, interval, sleep};

use self::gpus::{Gpus, Which};
use self::page::{KV_USAGE, PREEMPTIONS, PREFILL_TIME, Page, QUEUE_TIME, RESIDENT, RUNNING, WAITING};
use self::process::{cpu_seconds, resident_bytes};
use crate::config::OwnServer;
use crate::endpoint::Asking;
use crate::findings::Finding;
use crate::idle_check::busy;
use crate::series::{ServerSample, ServerSide, ServerStart, TtftSplit};
use crate::summary::RungSummary;

/// How often the server is looked at, and how long it may take to answer at most.
const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);
/// GPUs tell what they did in the last second.
const SETTLING: Duration = Duration::from_millis(1200);
/// No metrics page is longer.
const LARGEST_PAGE: usize = 8 << 20;

/// Looks at one server.
#[derive(Debug)]
pub(crate) struct Telemetry {
    http: reqwest::Client,
    patience: Duration,
    /// None: it has no metrics that are known.
    url: Option<Url>,
    /// Of the server, where it is known.
    process: Option<u32>,
    /// Why there are none to look at, if there are none.
    gpus: Result<Gpus, String>,
    /// They are all that this machine has: which of them are the server's, nobody knows.
    of_host: bool,
    start: ServerStart,
}

/// What was seen during a run.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    before: Page,
    samples: Vec<ServerSample>,
}

/// The last look, for what is known by its growth.
#[derive(Default)]
struct Look {
    at: Duration,
    page: Page,
    cpu_seconds: Option<f64>,
}

impl Telemetry {
    /// Looks for what there is to be seen of a server that is under no load yet.
    pub(crate) async fn of(asking: Asking<'_>, own: Option<&OwnServer>, numbered: &[u32]) -> Self {
        let url = asking.base.join("metrics");
        let which = which_gpus(asking.base.is_local(), own, numbered);
        let of_host = which == Ok(Which::Host);
        let gpus = match which {
            Ok(which) => Gpus::nvidia(which).await,
            Err(why) => Err(why.to_owned()),
        };
        let process = own.map(|own| own.process);
        let patience = asking.patience.min(PATIENCE);
        let mut telemetry = Self {
            http: asking.http.clone(),
            patience,
            url: Some(url),
            process,
            gpus,
            of_host,
            start: ServerStart::default(),
        };
        let page = telemetry.page().await.unwrap_or_default();
        if !page.is_known() {
            telemetry.url = None;
        }
        let (sample, last) = telemetry.look(Duration::ZERO, &Look::default()).await;
        telemetry.start = ServerStart {
            parts: last.page.start,
            rss_bytes: sample.rss_bytes,
            gpu_memory_bytes: sample.gpu_sum(|gpu| gpu.memory_bytes),
        };
        telemetry
    }

    /// What the server was before it was put under load. None: nothing is known of it.
    pub(crate) fn start(&self) -> Option<ServerStart> {
        Some(self.start.clone()).filter(|start| *start != ServerStart::default())
    }

    /// What the server is busy with, if it still is after a moment: it may just have started.
    pub(crate) async fn busy(&self) -> Option<Finding> {
        let look = async || busy(&self.look(Duration::ZERO, &Look::default()).await.0);
        look().await?;
        sleep(SETTLING).await;
        look().await
    }

    /// What is looked at and what cannot be, for a person.
    pub(crate) fn watched(&self) -> String {
        let metrics = if self.url.is_some() { "its /metrics" } else { "no /metrics that are known" };
        let process = self.process.map_or("", |_| ", its process");
        match &self.gpus {
            Ok(_) if self.of_host => {
                format!("{metrics}{process}, all GPUs of this machine (--gpu-index says which are the server's)")
            }
            Ok(_) => format!("{metrics}{process}, its GPUs"),
            Err(why) => format!("{metrics}{process}, no GPU ({why})"),
        }
    }

    fn sees(&self) -> bool {
        self.url.is_some() || self.process.is_some() || self.gpus.is_ok()
    }

    /// What it is like before a run.
    pub(crate) async fn begin(&self) -> Seen {
        Seen { before: self.page().await.unwrap_or_default(), samples: Vec::new() }
    }

    /// Looks at the server once a second, until dropped.
    pub(crate) async fn watch(&self, seen: &mut Seen) -> Infallible {
        if !self.sees() {
            return std::future::pending().await;
        }
        let began = Instant::now();
        let mut last = Look { page: seen.before.clone(), ..Look::default() };
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (sample, look) = self.look(began.elapsed(), &last).await;
            last = look;
            if sample != (ServerSample { at_s: sample.at_s, ..ServerSample::default() }) {
                seen.samples.push(sample);
            }
        }
    }

    async fn look(&self, at: Duration, last: &Look) -> (ServerSample, Look) {
        // Before what may take its time: it is the growth since the look before.
        let cpu_seconds = self.process.and_then(cpu_seconds);
        let gpus = async {
            match &self.gpus {
                Ok(gpus) => gpus.look().await,
                Err(_) => Vec::new(),
            }
        };
        let (page, gpus) = tokio::join!(self.page(), gpus);
        let look = Look { at, page: page.unwrap_or_default(), cpu_seconds };
        let (gpus, host_gpus) = if self.of_host { (Vec::new(), gpus) } else { (gpus, Vec::new()) };
        let seconds = (at - last.at).as_secs_f64();
        let worked = look.cpu_seconds.zip(last.cpu_seconds).filter(|_| seconds > 0.0);
        let sample = ServerSample {
            at_s: at.as_secs_f64(),
            running: look.page.get(RUNNING),
            waiting: look.page.get(WAITING),
            kv_cache_usage: look.page.get(KV_USAGE),
            preemptions: look.page.get(PREEMPTIONS),
            step_ms: look.page.step_since(&last.page),
            rss_bytes: self.process.and_then(resident_bytes).or(look.page.get(RESIDENT)),
            cpu_cores: worked.map(|(now, before)| (now - before).max(0.0) / seconds),
            gpus,
            host_gpus,
        };
        (sample, look)
    }

    /// What was seen of the run that `summary` is of.
    pub(crate) async fn end(&self, seen: Seen, summary: &RungSummary) -> Option<ServerSide> {
        let after = self.page().await.unwrap_or_default();
        let ttft_split = split(&seen.before, &after, summary.ttft_ms.as_ref().map(|ttft| ttft.mean));
        let preemptions = after.get(PREEMPTIONS).zip(seen.before.get(PREEMPTIONS));
        let preemptions = preemptions.map(|(now, before)| (now - before).max(0.0) as u64);
        let side = ServerSide { ttft_split, samples: seen.samples, preemptions };
        (side != ServerSide::default()).then_some(side)
    }

    async fn page(&self) -> Option<Page> {
        let request = self.http.get(self.url.clone()?).timeout(self.patience);
        let response = request.send().await.ok()?.error_for_status().ok()?;
        let body = read_limited(response, LARGEST_PAGE).await.ok()?;
        Some(Page::parse(&String::from_utf8_lossy(&body)))
    }
}

/// The GPUs that are looked at of a server: its own where they are known. An error says why there are none.
fn which_gpus(is_local: bool, own: Option<&OwnServer>, numbered: &[u32]) -> Result<Which, &'static str> {
    match own.map(|own| own.gpu.clone()) {
        _ if !numbered.is_empty() => Ok(Which::Numbered(numbered.to_vec())),
        Some(Some(address)) => Ok(Which::At(address)),
        Some(None) => Err("the server computes on none"),
        None if is_local => Ok(Which::Host),
        None => Err("the server is not on this machine"),
    }
}

fn split(before: &Page, after: &Page, ttft_ms: Option<f64>) -> Option<TtftSplit> {
    let queue_ms = after.mean_since(before, QUEUE_TIME)?;
    let prefill_ms = after.mean_since(before, PREFILL_TIME)?;
    // The server's means are of the whole run, the client's of its steady part: where the rest is small, it may come out
    // a little below 0.
    Some(TtftSplit { queue_ms, prefill_ms, network_ms: (ttft_ms? - queue_ms - prefill_ms).max(0.0) })
}

#[cfg(test)]
mod tests {
    use super::gpus::tests::Planted;
    use super::*;

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

    fn telemetry(process: Option<u32>, gpus: Result<Gpus, String>) -> Telemetry {
        let http = reqwest::Client::builder().build().expect("a client");
        Telemetry { http, patience: PATIENCE, url: None, process, gpus, of_host: false, start: ServerStart::default() }
    }

    #[tokio::test]
    async fn a_look_holds_the_process_and_the_gpus_and_what_grew_since_the_last() {
        let gpus = Gpus::of(Planted { watts: vec![300.0, 650.0], seconds: 0.0 });
        let telemetry = telemetry(Some(std::process::id()), Ok(gpus));
        let (first, look) = telemetry.look(Duration::ZERO, &Look::default()).await;
        assert_eq!(first.cpu_cores, None, "there was no look before");
        assert_eq!((first.gpu_sum(|gpu| gpu.power_w), first.gpu_mean(|gpu| gpu.power_w)), (Some(950.0), Some(475.0)));
        assert_eq!(first.gpu_sum(|gpu| gpu.utilization), None, "it is not told");
        let (second, _) = telemetry.look(Duration::from_secs(1), &look).await;
        assert!(second.cpu_cores.is_some_and(|cores| cores >= 0.0), "{second:?}");
        assert_eq!(second.gpu_sum(|gpu| gpu.energy_j), Some(1900.0));
        assert_eq!(telemetry.watched(), "no /metrics that are known, its process, its GPUs");
    }

    #[tokio::test]
    async fn gpus_of_which_nobody_knows_whose_they_are_count_for_nothing() {
        let gpus = Gpus::of(Planted { watts: vec![300.0, 650.0], seconds: 0.0 });
        let telemetry = Telemetry { of_host: true, ..telemetry(None, Ok(gpus)) };
        let (sample, _) = telemetry.look(Duration::ZERO, &Look::default()).await;
        assert_eq!((sample.gpus.len(), sample.host_gpus.len()), (0, 2));
        assert_eq!(sample.gpu_sum(|gpu| gpu.energy_j), None);
        assert!(telemetry.watched().contains("all GPUs of this machine"), "{}", telemetry.watched());
    }

    #[test]
    fn a_server_s_own_gpus_are_those_that_are_known() {
        let own = |gpu: Option<&str>| OwnServer { process: 1, gpu: gpu.map(str::to_owned) };
        assert_eq!(which_gpus(true, Some(&own(Some("00:1"))), &[]), Ok(Which::At("00:1".to_owned())));
        assert!(which_gpus(true, Some(&own(None)), &[]).is_err() && which_gpus(false, None, &[]).is_err());
        assert_eq!(which_gpus(true, None, &[]), Ok(Which::Host));
        assert_eq!(which_gpus(true, None, &[3]), Ok(Which::Numbered(vec![3])));
    }

    #[tokio::test]
    async fn where_there_is_nothing_to_be_seen_that_is_said_and_nothing_kept() {
        let telemetry = telemetry(None, Err("no driver".to_owned()));
        assert_eq!(telemetry.watched(), "no /metrics that are known, no GPU (no driver)");
        let (sample, _) = telemetry.look(Duration::ZERO, &Look::default()).await;
        assert_eq!(sample, ServerSample::default());
        assert_eq!(telemetry.start(), None);
    }
}
