//! The program `gpu-check`, built with CUDA alone: runs one part on the GPU and leaves its results in a folder.
//!
//! `gpu-check run PART` starts itself as a worker for the part's items, so that a kernel that faults or hangs costs its
//! own item only.

mod ceilings;
mod checks;
mod clock;
mod dense;
mod experts;
mod goldens;
mod gpu;
mod layers;
mod models;
mod serve;
mod timings;
mod worker;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use clap::{Args, Parser, ValueEnum};
use plimsoll_gpu_check::only::Only;
use plimsoll_gpu_check::results::{self, Results, is_ok};
use plimsoll_gpu_check::supervise::{self, End, Limits};
use plimsoll_gpu_check::{benchmarks, scale, table};
use serde_json::{Value, json};

/// Checks and measures Plimsoll on this machine's GPU
#[derive(Parser)]
#[command(version)]
enum Arguments {
    /// Run a part and write DIR/PART.json
    Run(Job),
    /// What `run` starts
    #[command(hide = true)]
    Worker {
        #[command(flatten)]
        job: Job,
        /// Item to begin at
        #[arg(long)]
        from: usize,
    },
    /// Print what the parts have left in DIR
    Table {
        #[arg(long)]
        out: PathBuf,
    },
    /// Print what docs/benchmarks.md is to say of it: goals, and the server beside the reference result
    Benchmarks {
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Args)]
struct Job {
    part: Part,
    /// Folder for the results
    #[arg(long)]
    out: PathBuf,
    /// Seconds that the part may take
    #[arg(long)]
    seconds: u64,
    /// Folder with `configs` and `tests`
    #[arg(long, default_value = ".")]
    data: PathBuf,
    /// Device that the server computes on
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Everything small, to see on a stand-in for a GPU that it runs: the figures mean nothing
    #[arg(long)]
    rehearse: bool,
    /// Items whose name contains one of these texts, with commas between them: gpt-oss,scout [default: all]
    #[arg(long, value_name = "TEXTS", default_value = "", hide_default_value = true, value_parser = parse_only)]
    only: Only,
    /// Seed of the random inputs [default: the clock's]
    #[arg(long)]
    seed: Option<u64>,
}

fn parse_only(texts: &str) -> Result<Only, std::convert::Infallible> {
    Ok(Only::parse(texts))
}

impl Job {
    fn scale(&self) -> &'static scale::Scale {
        if self.rehearse { &scale::REHEARSAL } else { &scale::FULL }
    }
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// The device, and what it can do at most: copying, matrix products
    Ceilings,
    /// Every kernel against its oracle, with fresh random inputs
    Checks,
    /// Tiny models against recorded logits
    Golden,
    /// Every kernel's time at the shapes of real models
    Timings,
    /// A layer's matrix products against cuBLASLt alone
    Dense,
    /// Whole models' steps, with random weights
    Models,
    /// The server under load
    Serve,
}

const PARTS: &[Part] =
    &[Part::Ceilings, Part::Checks, Part::Golden, Part::Timings, Part::Dense, Part::Models, Part::Serve];

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Ceilings => "ceilings",
            Self::Checks => "checks",
            Self::Golden => "golden",
            Self::Timings => "timings",
            Self::Dense => "dense",
            Self::Models => "models",
            Self::Serve => "serve",
        }
    }

    /// How long one item may take before its process is taken to hang.
    fn patience(self) -> Duration {
        Duration::from_secs(match self {
            Self::Checks => 20,
            Self::Ceilings | Self::Timings | Self::Dense => 40,
            Self::Models | Self::Serve => 90,
            Self::Golden => 200, // a stand-in for a GPU takes long
        })
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all went well.
fn run(arguments: Arguments) -> Result<bool> {
    match arguments {
        Arguments::Run(job) => run_part(&job),
        Arguments::Worker { job, from } => {
            worker::run(items(&job)?, from, job.scale())?;
            Ok(true)
        }
        Arguments::Table { out } => print_tables(&out),
        Arguments::Benchmarks { out } => {
            print!("{}", benchmarks::markdown(&out)?);
            Ok(true)
        }
    }
}

fn items(job: &Job) -> Result<Vec<worker::Item>> {
    let items = match job.part {
        Part::Ceilings => ceilings::items(),
        Part::Checks => checks::items(job.seed.unwrap_or(0)),
        Part::Golden => {
            let layers = layers::items().into_iter().chain(experts::items());
            layers.chain(goldens::items(&job.data.join("tests/golden"))?).collect()
        }
        Part::Dense => dense::items(&job.out, job.scale()),
        Part::Timings => timings::items(&job.out, job.scale()),
        Part::Models => models::items(&job.data, &job.out, job.scale()),
        Part::Serve => Vec::new(), // has no worker: the server is its process
    };
    Ok(items.into_iter().filter(|item| job.only.names(&item.name)).collect())
}

fn run_part(job: &Job) -> Result<bool> {
    std::fs::create_dir_all(&job.out).with_context(|| format!("cannot make {}", job.out.display()))?;
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let seed = job.seed.unwrap_or(clock.as_nanos() as u64);
    let about = json!({"built": built()?, "unix_time": clock.as_secs(), "seed": seed});
    let mut results = Results::new(&job.out, job.part.name(), about);
    results.save()?;
    let program = std::env::current_exe().context("where is this program?")?;
    let command = |from: usize| {
        let mut worker = Command::new(&program);
        worker.arg("worker").arg(job.part.name()).arg("--out").arg(&job.out).arg("--data").arg(&job.data);
        worker.args(job.rehearse.then_some("--rehearse"));
        worker.args(["--seconds", &job.seconds.to_string(), "--seed", &seed.to_string(), "--from", &from.to_string()]);
        worker.args(["--only", &job.only.to_string()]);
        worker
    };
    let limits = Limits { patience: job.part.patience(), until: Instant::now() + Duration::from_secs(job.seconds) };
    let in_time = match job.part {
        Part::Serve => {
            let Job { device, data, only, .. } = job;
            let serving = serve::Serving { device, data, only, until: limits.until };
            serving.run(job.scale().served, &mut results)?
        }
        _ => match supervise::run(command, limits, |row| results.push(row))? {
            End::All => true,
            // Checks go round until the time is over; a first round is what is wanted.
            End::OutOfTime(_) if job.part == Part::Checks => results.rows().len() >= checks::round(&job.only),
            End::OutOfTime(_) => false,
        },
    };
    print!("{}", rendered(job.part, results.rows()));
    if !in_time {
        println!("  the part's {} s were over before its items", job.seconds);
    }
    Ok(in_time && results.rows().iter().all(is_ok) && !results.rows().is_empty())
}

/// What the folder beside this program says of its making.
fn built() -> Result<Value> {
    let folder = std::env::current_exe()?.parent().map(Path::to_owned).unwrap_or_default();
    let Ok(text) = std::fs::read_to_string(folder.join("about.json")) else { return Ok(Value::Null) };
    serde_json::from_str(&text).context("about.json")
}

fn print_tables(folder: &Path) -> Result<bool> {
    let mut good = true;
    for part in PARTS {
        let rows = results::read(folder, part.name())?;
        good &= !rows.is_empty() && rows.iter().all(is_ok);
        println!("{}", rendered(*part, &rows));
    }
    Ok(good)
}

fn rendered(part: Part, rows: &[results::Row]) -> String {
    match part {
        Part::Checks => table::render_grouped(part.name(), rows),
        _ => table::render(part.name(), rows),
    }
}
