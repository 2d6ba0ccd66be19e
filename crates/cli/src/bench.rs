//! `plimsoll bench`: drives an endpoint at one load and prints what came of it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use plimsoll_bench::{Arrivals, BenchConfig, BenchReport, PromptSource, Slo};

use crate::config::Shared;
use crate::load::LoadOptions;
use crate::progress;
use crate::report::say;

/// What `bench` takes.
#[derive(Args, Debug)]
pub(crate) struct BenchOptions {
    /// Server to drive [default: http://HOST:PORT of the shared options]
    #[arg(long)]
    url: Option<String>,

    /// Requests in flight at once
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    concurrency: u32,

    /// Requests to send in all [default: with --max-seconds or the times of a trace as many as there are, else 100]
    #[arg(long, short, value_name = "M")]
    requests: Option<u64>,

    /// Ten requests one after another, 512 tokens in and 256 out: what a single user sees
    #[arg(long, conflicts_with_all = ["concurrency", "requests", "arrivals", "rate", "prompts", "random_input", "trace"])]
    single: bool,

    /// Milliseconds to the first token, from when the request was due, that a request may take to count for goodput
    #[arg(long, value_name = "MS")]
    slo_ttft: Option<f64>,

    /// Milliseconds a token, after the first, that a request may take to count for goodput
    #[arg(long, value_name = "MS")]
    slo_tpot: Option<f64>,

    /// Key to send as `Authorization: Bearer KEY`
    #[arg(long, env = "PLIMSOLL_API_KEY", value_name = "KEY")]
    api_key: Option<String>,

    /// Begin each prompt with a tag of its own, so that none is answered from a warm prefix cache
    #[arg(long)]
    salt: bool,

    /// Send no further request after this many seconds [default: at the times of a trace none, else 3600]
    #[arg(long, value_name = "SECONDS")]
    max_seconds: Option<u64>,

    /// Folder to write bench.json to. Ctrl-C ends the run early and reports what was measured
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    arrivals: ArrivalOptions,

    #[command(flatten)]
    load: LoadOptions,
}

/// What `--single` sends.
const SINGLE_INPUT: u32 = 512;
const SINGLE_OUTPUT: u32 = 256;
const SINGLE_RUNS: u64 = 10;

/// The answer of `--single` in a line.
fn single(report: &BenchReport) -> String {
    let summary = &report.rung.summary;
    let (Some(ttft), Some(decode)) = (&summary.ttft_ms, &summary.per_user.one_over_tpot) else {
        return "no request succeeded".to_owned();
    };
    format!(
        "{SINGLE_INPUT} tokens in, {SINGLE_OUTPUT} out, {} runs: TTFT p50 {:.1} ms, p95 {:.1} ms; decode {:.1} tok/s",
        ttft.count, ttft.p50, ttft.p95, decode.p50
    )
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Extent {
    /// `u64::MAX`: as many as there are.
    requests: u64,
    time: Duration,
}

impl Extent {
    const REQUESTS: u64 = 100;
    const TIME: Duration = Duration::from_secs(3600);
    /// Longer than any trace, and short enough to be added to a time.
    const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);

    /// What is asked for is played whole: a number of requests is a limit of its own only where nothing else is one.
    fn of(arrivals: Arrivals, requests: Option<u64>, seconds: Option<u64>) -> Self {
        let of_trace = arrivals == Arrivals::Trace;
        let many = if of_trace || seconds.is_some() { u64::MAX } else { Self::REQUESTS };
        let long = if of_trace { Self::ENDLESS } else { Self::TIME };
        Self { requests: requests.unwrap_or(many), time: seconds.map_or(long, Duration::from_secs) }
    }
}

/// When requests are sent.
#[derive(Args, Debug)]
#[command(next_help_heading = "Arrivals")]
struct ArrivalOptions {
    /// `closed`: each of the --concurrency clients waits for its reply before it sends its next request. The others are
    /// open loops: requests come at --rate whatever the server does, and latency counts from when each was due
    #[arg(long, value_name = "KIND", default_value = "closed")]
    arrivals: ArrivalKind,

    /// Requests a second; of a ramp, at its end
    #[arg(long, value_name = "PER_SECOND")]
    rate: Option<f64>,

    /// Shape of gamma arrivals: 1 is Poisson, 0.25 is bursty, 4 is even
    #[arg(long, value_name = "SHAPE", default_value_t = 0.5)]
    burstiness: f64,

    /// Most requests in flight of an open loop; what is due beyond them is not sent and counts as failed
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_in_flight: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum ArrivalKind {
    /// A fixed number of clients
    Closed,
    /// Evenly spaced
    Constant,
    /// Independent of one another
    Poisson,
    /// In bursts, or more evenly: see --burstiness
    Gamma,
    /// Poisson, the rate rising from nothing to --rate within --max-seconds
    Ramp,
    /// At the times of --trace
    Trace,
}

impl ArrivalOptions {
    fn arrivals(&self) -> Result<Arrivals> {
        let rate = || self.rate.context("open arrivals need a rate; give --rate requests a second");
        ensure!(
            self.rate.is_none() || !matches!(self.arrivals, ArrivalKind::Closed | ArrivalKind::Trace),
            "--rate is for open arrivals; add --arrivals poisson (or constant, gamma, ramp)"
        );
        Ok(match self.arrivals {
            ArrivalKind::Closed => Arrivals::Closed,
            ArrivalKind::Constant => Arrivals::Constant { rate: rate()? },
            ArrivalKind::Poisson => Arrivals::Poisson { rate: rate()? },
            ArrivalKind::Gamma => Arrivals::Gamma { rate: rate()?, shape: self.burstiness },
            ArrivalKind::Ramp => Arrivals::Ramp { rate: rate()? },
            ArrivalKind::Trace => Arrivals::Trace,
        })
    }
}

pub(crate) async fn run(shared: &Shared, options: BenchOptions) -> Result<()> {
    let url = options.url.unwrap_or_else(|| format!("http://{}", shared.address));
    let arrivals = options.arrivals.arrivals()?;
    let mut workload = options.load.workload(options.salt || options.single);
    let mut extent = Extent::of(arrivals, options.requests, options.max_seconds);
    let mut concurrency = options.concurrency;
    if options.single {
        workload.prompts = PromptSource::fixed(SINGLE_INPUT, SINGLE_OUTPUT);
        (extent.requests, concurrency) = (SINGLE_RUNS, 1);
    }
    let config = BenchConfig {
        endpoint: options.load.endpoint(url, options.api_key),
        generation: options.load.generation()?,
        workload,
        concurrency: if arrivals == Arrivals::Closed { concurrency } else { options.arrivals.max_in_flight },
        arrivals,
        slo: Slo { ttft_ms: options.slo_ttft, tpot_ms: options.slo_tpot, ..Slo::default() },
        requests: extent.requests,
        max_duration: extent.time,
        request_timeout: options.load.timeout()?,
        ..BenchConfig::new("")
    };
    let bar = progress::bar(Some(extent.requests).filter(|&requests| requests < u64::MAX));
    let stop = progress::StopOnSignal::new()?;
    let report = plimsoll_bench::run_until(&config, &stop, |news| progress::show(news, &bar)).await;
    bar.finish_and_clear();
    let report = report?;
    let headline = if options.single { format!("{}\n", single(&report)) } else { String::new() };
    let told = say(format_args!("{headline}{report}"));
    if let Some(folder) = &options.out {
        say(format_args!("written to {}", report.write(folder)?.display()))?;
    }
    told?;
    if report.rung.summary.outcomes.success == 0 {
        bail!("no request succeeded");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_played_whole() {
        let of = |arrivals, requests, seconds| {
            let Extent { requests, time } = Extent::of(arrivals, requests, seconds);
            (requests, time.as_secs())
        };
        let poisson = Arrivals::Poisson { rate: 1.0 };
        assert_eq!(of(Arrivals::Closed, None, None), (100, 3600));
        assert_eq!(of(poisson, None, Some(60)), (u64::MAX, 60));
        assert_eq!(of(poisson, Some(7), Some(60)), (7, 60));
        assert_eq!(of(Arrivals::Trace, None, Some(60)), (u64::MAX, 60));
        let (requests, seconds) = of(Arrivals::Trace, None, None);
        assert!(requests == u64::MAX && seconds > 365 * 86_400);
        assert_eq!(of(Arrivals::Trace, Some(7), None).0, 7);
    }
}
