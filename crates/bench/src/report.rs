//! What a measurement leaves behind: serializable reports with a schema's name, and their JSON files.

mod charts;
mod csv;
mod html;
#[cfg(test)]
pub(crate) mod sample;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use self::charts::joules_per_token;
pub use self::html::{Foretold, PageOptions};
use crate::config::{BenchConfig, SaturateConfig};
use crate::error::{BenchError, Result};
use crate::findings::Finding;
use crate::load::RunLog;
use crate::preflight::ClientCeiling;
use crate::search::Answer;
use crate::selection::{LengthSource, Selection};
use crate::series::{self, ServerSide, ServerStart, TimeSlice};
use crate::slo::Slo;
use crate::summary::{RungSummary, failure_samples, summarize};

/// Name and version of the JSON that [`BenchReport`] and [`SaturationReport`] write. The number changes whenever a
/// reader of the old one would misread the new one.
pub(crate) const BENCH_SCHEMA: &str = "plimsoll.bench/1";
pub(crate) const SATURATION_SCHEMA: &str = "plimsoll.saturation/3";

/// Which prompts were sent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct WorkloadFacts {
    /// `bundled`, or the file's path.
    pub source: String,
    /// Prompts in the set; entries beside them that held none; of the prompts, how many had their length looked at
    /// until there were enough; and how many of these were within the limits and are sent.
    pub loaded: usize,
    pub without_prompt: usize,
    pub examined: usize,
    pub used: usize,
    pub lengths: LengthSource,
    /// Mean length of the prompts used, in tokens of their own text, the salt's included.
    pub mean_prompt_tokens: f64,
}

impl WorkloadFacts {
    pub(crate) fn new(selection: &Selection) -> Self {
        Self {
            source: selection.source.clone(),
            loaded: selection.loaded,
            without_prompt: selection.without_prompt,
            examined: selection.examined,
            used: selection.prompts.len(),
            lengths: selection.lengths,
            mean_prompt_tokens: selection.mean_tokens(),
        }
    }
}

/// A rung with what went wrong in it, if anything did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RungReport {
    #[serde(flatten)]
    pub summary: RungSummary,
    /// One message of each cause of failure.
    pub failure_samples: Vec<String>,
    /// The whole run in equal slices of time; the measured window is `summary.window`.
    #[serde(default)]
    pub series: Vec<TimeSlice>,
    /// What the server said of itself, where it has `/metrics` that are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerSide>,
}

impl RungReport {
    pub(crate) fn new(log: &RunLog, slo: &Slo) -> Self {
        Self {
            summary: summarize(log, slo),
            failure_samples: failure_samples(&log.records),
            series: series::series(log),
            server: None,
        }
    }
}

/// An open-loop rung of the confirmation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OfferedReport {
    /// What was offered: its share of the highest throughput, and requests a second.
    pub share: f64,
    pub rate: f64,
    pub rung: RungReport,
}

/// One run at one concurrency. `Display` gives the terminal's table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BenchReport {
    pub schema: String,
    pub tool_version: String,
    /// Seconds since 1970 when the run began.
    pub started_unix_s: u64,
    pub model: String,
    pub config: BenchConfig,
    pub workload: WorkloadFacts,
    pub rung: RungReport,
    /// What to know before believing the figures.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// A search for the saturation point. `Display` gives the answer in its first line, then the table.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SaturationReport {
    pub schema: String,
    pub tool_version: String,
    pub started_unix_s: u64,
    pub model: String,
    pub config: SaturateConfig,
    pub workload: WorkloadFacts,
    /// What the server was before it was put under load. None: it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_start: Option<ServerStart>,
    pub client_ceiling: ClientCeiling,
    pub answer: Answer,
    /// By concurrency, ascending; one that was measured several times is there several times.
    pub rungs: Vec<RungReport>,
    /// Poisson arrivals at shares of the highest throughput, in the order in which they were offered.
    #[serde(default)]
    pub offered: Vec<OfferedReport>,
    /// Closed-loop rungs measured once more at the very end, for `answer.drift`.
    #[serde(default)]
    pub rechecks: Vec<RungReport>,
    /// What to know before believing the answer. One that `invalidates` it is to be seen first.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

impl BenchReport {
    /// Writes `bench.json` into `folder`, which is created if need be. Returns the file's path.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        write_json(self, folder, "bench.json")
    }
}

impl SaturationReport {
    /// Writes `saturation.json` into `folder`, which is created if need be. Returns the file's path.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        write_json(self, folder, "saturation.json")
    }
}

fn write_json(report: &impl Serialize, folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    let mut text = serde_json::to_vec_pretty(report).expect("reports hold nothing that JSON cannot");
    text.push(b'\n');
    write_file(&path, &text)?;
    Ok(path)
}

/// Writes a file, and its folder if need be. An older file stays until the new one is whole: that is written beside it,
/// as `NAME.new`, and takes its place.
///
/// # Errors
/// It cannot be written; nothing is left beside it.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let wrong = |source| BenchError::Write { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        // A pipe or a device has nothing to keep, and is not to be put out of its place.
        Ok(found) if !found.is_file() => std::fs::write(path, bytes).map_err(wrong),
        // The file that a link leads to, not the link.
        _ => replace(&path.canonicalize().unwrap_or_else(|_| path.to_owned()), bytes).map_err(wrong),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().ok_or(std::io::ErrorKind::IsADirectory)?.to_owned();
    name.push(".new");
    let unfinished = path.with_file_name(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let written = std::fs::write(&unfinished, bytes).and_then(|()| std::fs::rename(&unfinished, path));
    if written.is_err() {
        // It holds a part at most, and takes the room that is lacking.
        std::fs::remove_file(&unfinished).ok();
    }
    written
}

/// No report comes near this; a file that does is none.
const LARGEST_FILE: u64 = 256 << 20;

impl SaturationReport {
    /// Reads what [`SaturationReport::write`] wrote.
    ///
    /// # Errors
    /// The file cannot be read or is no such report.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |why: String| BenchError::Report { path: path.to_owned(), why };
        let bytes = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if bytes > LARGEST_FILE {
            return Err(wrong(format!("it has {bytes} bytes, more than any report; give a saturation.json")));
        }
        let whole = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        // The schema first: what it is says more than which field is missing.
        let json: serde_json::Value =
            serde_json::from_slice(&whole).map_err(|error| wrong(format!("it is not JSON: {error}")))?;
        match json.get("schema").and_then(serde_json::Value::as_str) {
            Some(SATURATION_SCHEMA) => {}
            Some(old) if old.starts_with("plimsoll.saturation/") => {
                let why =
                    format!("it is of another version, `{old}`, and this reads `{SATURATION_SCHEMA}`; measure again");
                return Err(wrong(why));
            }
            Some(other) => return Err(wrong(format!("it is `{other}`, and this reads `{SATURATION_SCHEMA}`"))),
            None => return Err(wrong("it names no schema; give a saturation.json that `saturate --out` wrote".into())),
        }
        serde_json::from_value(json).map_err(|error| wrong(error.to_string()))
    }
}

/// Seconds since 1970.
pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
