//! `plimsoll saturate`: walks up concurrencies until throughput stops rising, and on until service breaks. Without a URL
//! it measures a server of its own: this same binary, as a child process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use plimsoll_bench::{Generation, RungRule, SaturateConfig, SaturationReport, SearchConfig, Slo, Workload};

use crate::child::Listening;
use crate::config::Config;
use crate::load::LoadOptions;
use crate::load_line::{LoadLine, Subject};
use crate::model;
use crate::options::{LoadLineUse, ServeOptions, SharedOptions};
use crate::progress::{self, StopOnSignal};
use crate::report::FormOptions;

/// What `saturate` takes.
#[derive(Args, Debug)]
pub(crate) struct SaturateOptions {
    /// Server to drive; without it a server of its own is started with the options of `serve`
    #[arg(long)]
    url: Option<String>,

    /// Highest concurrency to try
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_concurrency: u32,

    /// Seconds that one concurrency is measured for at most [default: so that the search ends within the budget]
    #[arg(long, value_name = "SECONDS")]
    rung_seconds: Option<u64>,

    /// Time for the whole search, for instance 10m, 90s, or seconds as a number. What is in flight when it is up is cut
    /// off and counts neither as success nor as failure
    #[arg(long, value_name = "TIME", default_value = "20m", value_parser = duration)]
    budget: Duration,

    /// A first answer within two minutes, without open loop and drift check; the report says how sure it is
    #[arg(long, conflicts_with_all = ["budget", "rung_seconds"])]
    quick: bool,

    /// Leave out the open loop: Poisson arrivals at 70, 80, 90, 100 and 105% of the highest throughput, which do not wait
    /// for the server as the ladder's clients do
    #[arg(long)]
    no_open_loop: bool,

    /// Leave out the drift check: N = 1 and the saturation point once more at the end; if either has changed by more than
    /// 3%, the result is marked as invalid
    #[arg(long)]
    no_drift_check: bool,

    /// Keep what is found as the load line of `serve` though the workload is not the usual one
    #[arg(long)]
    keep_line: bool,

    /// Folder to write saturation.json to. Ctrl-C ends the search early and reports what was measured
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    forms: FormOptions,

    #[command(flatten)]
    limits: LimitOptions,

    #[command(flatten)]
    load: LoadOptions,

    #[command(flatten)]
    pub(crate) serve: ServeOptions,
}

/// What service is held to.
#[derive(Args, Debug)]
#[command(next_help_heading = "Limits of service")]
struct LimitOptions {
    /// Milliseconds to the first token that count as too late. MLPerf's limits: 2000 for Llama 3.1 8B (500 interactive),
    /// 3000 for gpt-oss-120b
    #[arg(long, value_name = "MS")]
    slo_ttft: Option<f64>,

    /// Milliseconds a token, after the first, that count as too slow. MLPerf's limits: 100 for Llama 3.1 8B (30
    /// interactive), 80 for gpt-oss-120b
    #[arg(long, value_name = "MS")]
    slo_tpot: Option<f64>,

    /// Percent of the requests that must keep each of these limits
    #[arg(long, value_name = "PERCENT", default_value_t = 99.0)]
    slo_percentile: f64,

    /// Percent of the requests that must succeed
    #[arg(long, value_name = "PERCENT", default_value_t = 99.0)]
    success_floor: f64,
}

impl LimitOptions {
    fn slo(&self) -> Slo {
        Slo { ttft_ms: self.slo_ttft, tpot_ms: self.slo_tpot, percentile: self.slo_percentile }
    }
}

/// What is left of two minutes for the search after the preflight, its last requests still ending.
const QUICK_BUDGET: Duration = Duration::from_secs(100);

/// Seconds, or a number with its unit: h, m or s.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{unit} is no unit of time; give h, m or s")),
    };
    let number: u32 = number.parse().map_err(|_| "give a whole number and h, m or s, for instance 10m".to_owned())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

pub(crate) async fn run(shared: SharedOptions, options: SaturateOptions) -> Result<()> {
    measure(shared, options).await.map(drop)
}

/// Whether it was interrupted.
async fn measure(shared: SharedOptions, options: SaturateOptions) -> Result<bool> {
    ensure!(options.rung_seconds != Some(0), "--rung-seconds is 0; give at least 1");
    let floor = options.limits.success_floor;
    ensure!((0.0..100.0).contains(&floor), "--success-floor is {floor}; give a percentage from 0 to below 100");
    let budget = if options.quick { QUICK_BUDGET } else { options.budget };
    let resolved = Config::resolve(shared.clone(), options.serve.clone())?;
    let api_key = resolved.admission.api_keys.first().cloned();
    let own = match &options.url {
        // What is to be measured must not be held to an older measurement.
        None => Some(Listening::server(&shared, &without_line(options.serve.clone()))?),
        Some(_) => None,
    };
    let url = options.url.or_else(|| own.as_ref().map(|server| server.url.clone())).unwrap_or_default();
    let null = Listening::null_server()?;
    let planned = RungRule::within(budget, options.max_concurrency);
    let longest = options.rung_seconds.map_or(planned.max_time, Duration::from_secs);
    let rung = RungRule { min_time: RungRule::default().min_time.min(longest / 3), max_time: longest, ..planned };
    let search = SearchConfig {
        max_concurrency: options.max_concurrency,
        success_floor: floor / 100.0,
        slo: options.limits.slo(),
        check_drift: !options.no_drift_check && !options.quick,
        ..SearchConfig::default()
    };
    let search = match options.no_open_loop || options.quick {
        true => SearchConfig { offered_shares: Vec::new(), ..search },
        false => search,
    };
    let config = SaturateConfig {
        endpoint: options.load.endpoint(url, api_key),
        generation: options.load.generation()?,
        workload: options.load.workload(true),
        search,
        rung,
        budget,
        request_timeout: options.load.timeout()?,
        null_server_url: Some(null.url.clone()),
        server_process: own.as_ref().map(Listening::id),
        ..SaturateConfig::new("")
    };
    let bar = progress::bar(None);
    let stop = StopOnSignal::new()?;
    let report = plimsoll_bench::saturate_until(&config, &stop, |news| progress::show(news, &bar)).await;
    bar.finish_and_clear();
    let report = report?;
    println!("{report}");
    if let Some(folder) = &options.out {
        println!("written to {}", report.write(folder)?.display());
    }
    options.forms.write(&report)?;
    if let Some(server) = own {
        // Its device is free again.
        drop(server);
        if is_usual(&config) || options.keep_line {
            keep_line(&report, &resolved)?;
        } else {
            println!(
                "the load line is not changed: this is not the usual workload (--keep-line to keep to what was found)"
            );
        }
    }
    Ok(stop.is_set())
}

/// Whether the load is the one that a server is measured with unless told otherwise.
fn is_usual(config: &SaturateConfig) -> bool {
    let usual = Workload { seed: config.workload.seed, salt: true, ..Workload::default() };
    let asked = serde_json::to_value((&config.workload, &config.generation));
    asked.ok() == serde_json::to_value((&usual, &Generation::default())).ok()
}

fn without_line(options: ServeOptions) -> ServeOptions {
    ServeOptions { load_line: Some(LoadLineUse::Off), ..options }
}

/// Writes down what `serve` will hold itself to.
fn keep_line(report: &SaturationReport, config: &Config) -> Result<()> {
    let subject = Subject::of(&model::find(config)?, config)?;
    match LoadLine::of(report, subject) {
        Some(line) => {
            let path = line.write()?;
            println!("load line: {line}; `plimsoll serve` with these options keeps to it ({})", path.display());
        }
        None => println!(
            "no load line: the search saw no end of the throughput, or its figures are not to be used (see above); a longer \
             --budget or a higher --max-concurrency may show more"
        ),
    }
    Ok(())
}

/// Measures a server's load line before it starts, in two minutes.
///
/// # Errors
/// As [`run`].
pub(crate) async fn calibrate(shared: SharedOptions, serve: ServeOptions) -> Result<()> {
    #[derive(clap::Parser)]
    struct Quick {
        #[command(flatten)]
        options: SaturateOptions,
    }
    println!("measuring the load line first, in about two minutes");
    let mut options = <Quick as clap::Parser>::parse_from(["saturate", "--quick"]).options;
    options.serve = serve;
    ensure!(!measure(shared, options).await?, "interrupted while the load line was measured; nothing is served");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("10m", 600), ("1h", 3600), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "m", "1.5m", "10d", "-1", "1m30s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
