//! The server that ships, under the load that its users bring: one model after the other, at the loads of `served`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use plimsoll_gpu_check::power::PowerLog;
use plimsoll_gpu_check::results::{Results, Row, row};
use plimsoll_gpu_check::serving::{self, Load, Server};
use plimsoll_gpu_check::traffic::Traffic;
use plimsoll_ops::gpu;
use serde_json::json;

use crate::ceilings::Ceilings;
use plimsoll_gpu_check::only::Only;
use plimsoll_gpu_check::served::Served;

/// How long a server may take until it is ready: the largest models make more than 100 GB of random weights. And how much
/// of the time must be left for another load.
const PATIENCE: Duration = Duration::from_secs(150);
const SHORTEST: Duration = Duration::from_secs(15);

/// Sequences that the server computes at once, whatever waits: its default on a GPU.
const MOST_SEQS: u32 = 1024;

/// Where and how.
pub(crate) struct Serving<'a> {
    pub(crate) device: &'a str,
    /// Folder with `configs` and `tests`.
    pub(crate) data: &'a Path,
    pub(crate) only: &'a Only,
    pub(crate) until: Instant,
}

impl Serving<'_> {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Returns whether all loads were run in time.
    ///
    /// # Errors
    /// The results cannot be written.
    pub(crate) fn run(&self, all: &[Served], results: &mut Results) -> Result<bool> {
        let program = program()?;
        for served in all.iter().filter(|served| self.only.names(served.model)) {
            if self.left() < SHORTEST {
                return Ok(false);
            }
            let arguments = self.arguments(served);
            let started = Instant::now();
            let mut server = match Server::start(&program, &arguments, PATIENCE.min(self.left())) {
                Ok(server) => server,
                Err(error) => {
                    results.push(told(&format!("{}/start", served.model), Err(error)))?;
                    continue;
                }
            };
            let ready_s = started.elapsed().as_secs_f64();
            for &load in served.loads {
                if self.left() < SHORTEST {
                    return Ok(false);
                }
                let mut measured = self.load(&program, &mut server, served, load, results.folder());
                if let Ok(row) = &mut measured {
                    row.insert("ready s".to_owned(), json!(ready_s));
                }
                results.push(told(&format!("{}/{}", served.model, load.name()), measured))?;
            }
        }
        Ok(true)
    }

    fn load(&self, program: &Path, server: &mut Server, served: &Served, load: Load, out: &Path) -> Result<Row> {
        let folder = serving::folder(out, served.model, load);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let address = gpu::pci_address(self.ordinal()).ok();
        let log = |address: String| PowerLog::start(Path::new("nvidia-smi"), &address, folder.join("power.csv"));
        let power = address.and_then(log);
        let in_time = Load { max_seconds: load.max_seconds.min(self.left().as_secs()), ..load };
        let mut measured = serving::drive(program, server, in_time, &folder)?;
        if !server.is_running() {
            return Err(anyhow!("the server has ended"));
        }
        let rate = |key: &str| measured.get(key).and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        let (input, output) = (rate("in tok/s"), rate("out tok/s"));
        if let Some(watts) = power.and_then(PowerLog::watts) {
            measured.insert("W".to_owned(), json!(watts));
            measured.insert("J/tok".to_owned(), json!(watts / output));
        }
        measured.extend(self.shares(served, load, input, output, out)?);
        Ok(measured)
    }

    /// Of the ceilings: what decode steps of as many sequences as run at once read of the weights, a second; and what all
    /// tokens take of products, a second. Keys and values are not counted.
    fn shares(&self, served: &Served, load: Load, input: f64, output: f64, out: &Path) -> Result<Row> {
        let traffic = Traffic::of_file(&self.data.join(served.config))?;
        let seqs = load.concurrency.min(MOST_SEQS);
        let bytes = traffic.step_bytes(seqs) as f64 * output / f64::from(seqs);
        let flops = traffic.flops((input + output) as u64, output as u64);
        let rates = Ceilings::read(out).rates(bytes as u64, flops, 1.0);
        Ok(rates.into_iter().filter(|(key, _)| key.starts_with("of ")).collect())
    }

    fn ordinal(&self) -> usize {
        self.device.strip_prefix("cuda:").and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    fn arguments(&self, served: &Served) -> Vec<String> {
        let config = self.data.join(served.config).display().to_string();
        let (len, device) = (served.len.to_string(), self.device);
        ["--device", device, "--load-format", "dummy", "--config", &config, "--max-model-len", &len]
            .map(str::to_owned)
            .into()
    }
}

/// A load counts as good where no request was lost.
fn told(name: &str, measured: Result<Row>) -> Row {
    let lost = |row: &Row| row.get("success").and_then(serde_json::Value::as_f64).is_none_or(|success| success < 1.0);
    let outcome = match &measured {
        Ok(row) if lost(row) => "requests were lost".to_owned(),
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let mut whole = row(json!({"name": name, "outcome": outcome}));
    whole.extend(measured.unwrap_or_default());
    whole
}

/// The program beside this one.
fn program() -> Result<PathBuf> {
    Ok(std::env::current_exe().context("where is this program?")?.with_file_name("plimsoll"))
}
