//! The server that ships, under the load that its users bring: one model after the other at rising concurrency.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use plimsoll_gpu_check::results::{Results, Row, row};
use plimsoll_gpu_check::serving::{self, Load, Server};
use serde_json::json;

const fn load(concurrency: u32, requests: u32, max_seconds: u64) -> Load {
    Load { concurrency, requests, max_seconds }
}

/// Models and what they are put under, the most telling first.
const SCENARIOS: [(&str, &[Load]); 2] = [
    ("llama-3.1-8b", &[load(32, 320, 20), load(4096, 8192, 30), load(256, 1536, 20), load(1024, 4096, 25)]),
    ("gemma-3-27b-it", &[load(32, 256, 25), load(256, 1024, 25)]),
];

/// How long a server may take until it is ready, and a load that is put on it at least.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(15);

/// Returns whether all loads were run in time.
///
/// # Errors
/// The results cannot be written.
pub(crate) fn run(program: &Path, device: &str, configs: &Path, until: Instant, results: &mut Results) -> Result<bool> {
    let left = || until.saturating_duration_since(Instant::now());
    for (model, loads) in SCENARIOS {
        if left() < SHORTEST {
            return Ok(false);
        }
        let config = configs.join(format!("{model}.json"));
        let mut server = match Server::start(program, &arguments(device, &config), PATIENCE.min(left())) {
            Ok(server) => server,
            Err(error) => {
                results.push(told(&format!("{model}/start"), Err(error)))?;
                continue;
            }
        };
        for &load in loads {
            if left() < SHORTEST {
                return Ok(false);
            }
            let name = format!("{model}/N={}", load.concurrency);
            let load = Load { max_seconds: load.max_seconds.min(left().as_secs()), ..load };
            let folder = serving::folder(results.folder(), model, load);
            let measured =
                serving::drive(program, &server, load, &folder).and_then(|measured| match server.is_running() {
                    true => Ok(measured),
                    false => Err(anyhow!("the server has ended")),
                });
            results.push(told(&name, measured))?;
        }
    }
    Ok(true)
}

fn arguments(device: &str, config: &Path) -> Vec<String> {
    let config = config.display().to_string();
    ["--device", device, "--load-format", "dummy", "--config", &config, "--max-model-len", "2048"]
        .map(str::to_owned)
        .into()
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
///
/// # Errors
/// It is not known where this one is.
pub(crate) fn program() -> Result<std::path::PathBuf> {
    Ok(std::env::current_exe().context("where is this program?")?.with_file_name("plimsoll"))
}
