//! The server that ships, under the load that its users bring: one model after the other at rising concurrency.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use plimsoll_gpu_check::results::{Results, Row, row};
use plimsoll_gpu_check::serving::{self, Load, Server};
use serde_json::json;

use crate::scale::Scale;

/// How long a server may take until it is ready, and a load that is put on it at least.
const PATIENCE: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(15);

/// Returns whether all loads were run in time.
///
/// # Errors
/// The results cannot be written.
pub(crate) fn run(
    program: &Path,
    device: &str,
    data: &Path,
    scale: &Scale,
    until: Instant,
    results: &mut Results,
) -> Result<bool> {
    let left = || until.saturating_duration_since(Instant::now());
    for &(model, config, loads) in scale.served {
        if left() < SHORTEST {
            return Ok(false);
        }
        let arguments = arguments(device, &data.join(config), scale.served_len);
        let mut server = match Server::start(program, &arguments, PATIENCE.min(left())) {
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

fn arguments(device: &str, config: &Path, max_model_len: u32) -> Vec<String> {
    let (config, len) = (config.display().to_string(), max_model_len.to_string());
    ["--device", device, "--load-format", "dummy", "--config", &config, "--max-model-len", &len]
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
