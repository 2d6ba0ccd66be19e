//! `plimsoll saturate`: walks up concurrencies until throughput stops rising. Without a URL it measures a server of
//! its own: this same binary, as a child process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use indicatif::ProgressBar;
use plimsoll_bench::{RungRule, SaturateConfig, SearchConfig};

use crate::bench;
use crate::child::Listening;
use crate::load::LoadOptions;
use crate::options::{ServeOptions, SharedOptions};

/// What `saturate` takes.
#[derive(Args, Debug)]
pub(crate) struct SaturateOptions {
    /// Server to drive; without it a server of its own is started with the options of `serve`
    #[arg(long)]
    url: Option<String>,

    /// Highest concurrency to try
    #[arg(long, value_name = "N", default_value_t = 4096)]
    max_concurrency: u32,

    /// Seconds that one concurrency is measured for at most
    #[arg(long, value_name = "SECONDS", default_value_t = 45)]
    rung_seconds: u64,

    /// Seconds after which no further concurrency is tried
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    budget: u64,

    /// Folder to write saturation.json to
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    load: LoadOptions,

    #[command(flatten)]
    pub(crate) serve: ServeOptions,
}

pub(crate) async fn run(shared: SharedOptions, options: SaturateOptions) -> Result<()> {
    ensure!(options.rung_seconds > 0, "--rung-seconds is 0; give at least 1");
    let api_key = options.serve.api_key.first().cloned();
    let own = if options.url.is_none() { Some(Listening::server(&shared, &options.serve)?) } else { None };
    let url = options.url.or_else(|| own.as_ref().map(|server| server.url.clone())).unwrap_or_default();
    let null = Listening::null_server()?;
    let longest = Duration::from_secs(options.rung_seconds);
    let rung =
        RungRule { min_time: RungRule::default().min_time.min(longest), max_time: longest, ..RungRule::default() };
    let config = SaturateConfig {
        endpoint: options.load.endpoint(url, api_key),
        generation: options.load.generation()?,
        workload: options.load.workload(true),
        search: SearchConfig { max_concurrency: options.max_concurrency, ..SearchConfig::default() },
        rung,
        budget: Duration::from_secs(options.budget),
        request_timeout: options.load.timeout()?,
        null_server_url: Some(null.url.clone()),
        ..SaturateConfig::new("")
    };
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(200));
    let report = plimsoll_bench::saturate(&config, |news| bench::show(news, &bar)).await;
    bar.finish_and_clear();
    let report = report?;
    println!("{report}");
    if let Some(folder) = &options.out {
        println!("written to {}", report.write(folder)?.display());
    }
    Ok(())
}
