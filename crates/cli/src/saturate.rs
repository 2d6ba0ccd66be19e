//! `plimsoll saturate`: walks up concurrencies until throughput stops rising, and on until service breaks. Without a URL
//! it measures a server of its own: this same binary, as a child process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use plimsoll_bench::{
    Finding, FindingKind, Generation, OwnServer, RungRule, SaturateConfig, SaturationReport, SearchConfig, Slo, Stop,
    Workload,
};

use crate::child::Listening;
use crate::config::Config;
use crate::device::pci_address;
use crate::devices::{self, Wanted};
use crate::load::LoadOptions;
use crate::load_line::{LoadLine, Subject};
use crate::model;
use crate::options::{LoadLineUse, ServeOptions, SharedOptions};
use crate::progress::{self, StopOnSignal};
use crate::report::{FormOptions, say};

/// What `saturate` takes.
#[derive(Args, Debug)]
pub(crate) struct SaturateOptions {
    /// Server to drive; without it a server of its own is started with the options of `serve`
    #[arg(long)]
    url: Option<String>,

    /// Measure each of these devices in turn with a server of its own (`all` GPUs of this host, or a list as
    /// cuda:0,cuda:2), put them side by side, and name the slow one. --budget is each one's; --out gets a folder and
    /// --html and --csv a file for each, and --html itself shows the comparison
    #[arg(long, value_name = "DEVICES", conflicts_with = "url")]
    devices: Option<Wanted>,

    /// GPUs of this machine on which the server at --url computes, by the index that nvidia-smi shows. Without it all GPUs
    /// of this machine are shown as the machine's, and no energy a token is told
    #[arg(long, value_name = "INDEX,...", value_delimiter = ',', requires = "url")]
    gpu_index: Vec<u32>,

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
    pub(crate) out: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) forms: FormOptions,

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
    let stop = StopOnSignal::new()?;
    match options.devices.clone() {
        Some(wanted) => devices::run(shared, options, &wanted, &stop).await,
        None => measure_and_keep(&shared, &options, &stop).await,
    }
}

async fn measure_and_keep(shared: &SharedOptions, options: &SaturateOptions, stop: &Stop) -> Result<()> {
    let report = measure(shared, options, stop).await?;
    let kept = keep(&report, options.out.as_deref(), &options.forms);
    kept.and(options.keep_line(shared, &report))
}

/// Prints the report and writes the files that were asked for: each of them, whatever becomes of the others.
///
/// # Errors
/// One cannot be written.
pub(crate) fn keep(report: &SaturationReport, folder: Option<&Path>, forms: &FormOptions) -> Result<()> {
    let told = say(report);
    let written = folder.map_or(Ok(()), |folder| say(format_args!("written to {}", report.write(folder)?.display())));
    let formed = forms.write(report);
    told.and(written).and(formed)
}

/// Searches a server that is there, or one of our own, which is ended afterwards.
///
/// # Errors
/// What keeps the search from starting; a server that does not start, or serves nothing; `stop` before anything was
/// measured.
pub(crate) async fn measure(
    shared: &SharedOptions,
    options: &SaturateOptions,
    stop: &Stop,
) -> Result<SaturationReport> {
    options.check()?;
    let resolved = Config::resolve(shared.clone(), options.serve.clone())?;
    let mut own = match &options.url {
        // What is to be measured must not be held to an older measurement.
        None => Some(Listening::server(shared, &without_line(options.serve.clone()), stop).await?),
        Some(_) => None,
    };
    let null = Listening::null_server(stop).await?;
    let config = options.config(&resolved, own.as_ref(), &null)?;
    let bar = progress::bar(None);
    let report = plimsoll_bench::saturate_until(&config, stop, |news| progress::show(news, &bar)).await;
    bar.finish_and_clear();
    let last_words = own.as_mut().and_then(Listening::last_words);
    // Its device is free again.
    drop(own);
    let mut report = match &last_words {
        Some(words) => report.with_context(|| words.clone())?,
        None => report?,
    };
    if let Some(words) = last_words {
        let text = format!("While it was measured {words}");
        report.findings.push(Finding::new(FindingKind::ServerEnded, text));
    }
    Ok(report)
}

impl SaturateOptions {
    fn check(&self) -> Result<()> {
        ensure!(self.rung_seconds != Some(0), "--rung-seconds is 0; give at least 1");
        let floor = self.limits.success_floor;
        ensure!((0.0..100.0).contains(&floor), "--success-floor is {floor}; give a percentage from 0 to below 100");
        self.forms.check()
    }

    fn config(&self, resolved: &Config, own: Option<&Listening>, null: &Listening) -> Result<SaturateConfig> {
        let budget = if self.quick { QUICK_BUDGET } else { self.budget };
        let planned = RungRule::within(budget, self.max_concurrency);
        let longest = self.rung_seconds.map_or(planned.max_time, Duration::from_secs);
        let rung = RungRule { min_time: RungRule::default().min_time.min(longest / 3), max_time: longest, ..planned };
        let mut search = SearchConfig {
            max_concurrency: self.max_concurrency,
            success_floor: self.limits.success_floor / 100.0,
            slo: self.limits.slo(),
            check_drift: !self.no_drift_check && !self.quick,
            ..SearchConfig::default()
        };
        if self.no_open_loop || self.quick {
            search.offered_shares.clear();
        }
        let url = self.url.clone().or_else(|| own.map(|server| server.url.clone())).unwrap_or_default();
        Ok(SaturateConfig {
            endpoint: self.load.endpoint(url, resolved.admission.api_keys.first().cloned()),
            generation: self.load.generation()?,
            workload: self.load.workload(true),
            search,
            rung,
            budget,
            request_timeout: self.load.timeout()?,
            null_server_url: Some(null.url.clone()),
            own_server: own.map(|server| OwnServer { process: server.id(), gpu: pci_address(resolved.shared.device) }),
            server_gpus: self.gpu_index.clone(),
            ..SaturateConfig::new("")
        })
    }

    /// Keeps what `serve` is to hold itself to by this report, if there is something.
    fn keep_line(&self, shared: &SharedOptions, report: &SaturationReport) -> Result<()> {
        let Some(line) = self.line(shared, report)? else { return Ok(()) };
        let path = line.write()?;
        say(format_args!("load line: {line}; `plimsoll serve` with these options keeps to it ({})", path.display()))
    }

    /// What `serve` would hold itself to by this report, which is of a server of our own; says why, where that is nothing.
    ///
    /// # Errors
    /// The model's files cannot be looked at.
    pub(crate) fn line(&self, shared: &SharedOptions, report: &SaturationReport) -> Result<Option<LoadLine>> {
        if self.url.is_some() {
            return Ok(None);
        }
        if report.findings.iter().any(|finding| finding.kind == FindingKind::ServerEnded) {
            say("no load line: the server did not outlive the search")?;
            return Ok(None);
        }
        if !is_usual(&report.config) && !self.keep_line {
            say(
                "the load line is not changed: this is not the usual workload (--keep-line to keep to what was found)",
            )?;
            return Ok(None);
        }
        let config = Config::resolve(shared.clone(), self.serve.clone())?;
        let line = LoadLine::of(report, Subject::of(&model::find(&config)?, &config)?);
        if line.is_none() {
            say(
                "no load line: the search saw no end of the throughput, or its figures are not to be used (see above); a \
                 longer --budget or a higher --max-concurrency may show more",
            )?;
        }
        Ok(line)
    }
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
    let stop = StopOnSignal::new()?;
    measure_and_keep(&shared, &options, &stop).await?;
    ensure!(!stop.is_set(), "interrupted while the load line was measured; nothing is served");
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
