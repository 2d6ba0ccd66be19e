//! `plimsoll bench`: drives an endpoint at one concurrency and prints what came of it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use plimsoll_bench::{BenchConfig, Progress};

use crate::config::Shared;
use crate::load::LoadOptions;

/// What `bench` takes.
#[derive(Args, Debug)]
pub(crate) struct BenchOptions {
    /// Server to drive [default: http://HOST:PORT of the shared options]
    #[arg(long)]
    url: Option<String>,

    /// Requests in flight at once
    #[arg(long, short, value_name = "N", default_value_t = 1)]
    concurrency: u32,

    /// Requests to send in all
    #[arg(long, short, value_name = "M", default_value_t = 100)]
    requests: u64,

    /// Key to send as `Authorization: Bearer KEY`
    #[arg(long, env = "PLIMSOLL_API_KEY", value_name = "KEY")]
    api_key: Option<String>,

    /// Begin each prompt with a tag of its own, so that none is answered from a warm prefix cache
    #[arg(long)]
    salt: bool,

    /// Send no further request after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    max_seconds: u64,

    /// Folder to write bench.json to
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    load: LoadOptions,
}

pub(crate) async fn run(shared: &Shared, options: BenchOptions) -> Result<()> {
    let url = options.url.unwrap_or_else(|| format!("http://{}", shared.address));
    let config = BenchConfig {
        endpoint: options.load.endpoint(url, options.api_key),
        generation: options.load.generation()?,
        workload: options.load.workload(options.salt),
        concurrency: options.concurrency,
        requests: options.requests,
        max_duration: Duration::from_secs(options.max_seconds),
        request_timeout: options.load.timeout()?,
        ..BenchConfig::new("")
    };
    let bar = ProgressBar::new(options.requests).with_style(style());
    let report = plimsoll_bench::run(&config, |news| show(news, &bar)).await;
    bar.finish_and_clear();
    let report = report?;
    println!("{report}");
    if let Some(folder) = &options.out {
        println!("written to {}", report.write(folder)?.display());
    }
    if report.rung.summary.outcomes.success == 0 {
        bail!("no request succeeded");
    }
    Ok(())
}

/// Shows news of a measurement on `bar`, and what is worth keeping above it.
pub(crate) fn show(news: &Progress, bar: &ProgressBar) {
    match news {
        Progress::Preflight(ceiling) => bar.println(format!("{ceiling}")),
        Progress::Ready { model, workload } => bar.println(format!(
            "model {model}; {} prompts of {:.1} tokens on average ({})",
            workload.used, workload.mean_prompt_tokens, workload.source
        )),
        Progress::Running { concurrency, done, failed, chunks_per_s, .. } => {
            bar.set_position(*done);
            bar.set_message(format!("N = {concurrency}: {chunks_per_s:.0} chunks/s, {failed} failed"));
        }
        Progress::Rung(rung) => {
            let summary = &rung.summary;
            bar.println(format!(
                "N = {}: {:.2} req/s, {:.1} output tok/s, {:.1}% succeeded",
                summary.concurrency,
                summary.rates.requests_per_s,
                summary.rates.output_tokens_per_s,
                100.0 * summary.success_rate
            ));
        }
    }
}

/// A bar of requests done, with a message.
pub(crate) fn style() -> ProgressStyle {
    ProgressStyle::with_template("  {wide_bar} {pos}/{len} {elapsed} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
