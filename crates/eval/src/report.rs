//! What came of an evaluation, as JSON: every task's outcome, so that runs can be compared task by task.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::ask::Form;
use crate::error::{EvalError, Result};
use crate::measure::{Energy, Memory};
use crate::perplexity::Perplexity;
use crate::sandbox::Sandbox;
use crate::stats::{Interval, wilson};
use crate::task::Category;

/// What `schema` says.
const SCHEMA: &str = "plimsoll.eval";
/// Counts up with each change that a reader of reports would notice, be it of the fields or of what passes.
const SCHEMA_VERSION: u32 = 2;

/// One evaluation of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    pub schema_version: u32,
    /// Seconds since 1970.
    pub created: u64,
    /// What tells this run from others in a comparison.
    pub label: String,
    pub url: String,
    pub model: String,
    /// The server was started for this run, with these options.
    pub own_server: Option<String>,
    pub tasks: Option<TaskReport>,
    pub perplexity: Option<Perplexity>,
    pub speed: Option<Speed>,
    pub cost: Cost,
}

/// The tasks and how they were asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskReport {
    pub set_version: u32,
    pub form: Form,
    pub max_tokens: u32,
    /// How programs were run; `None` where they were not.
    pub sandbox: Option<Sandbox>,
    pub scores: Vec<Score>,
    pub results: Vec<TaskResult>,
}

/// How a category went.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Score {
    pub category: Category,
    pub passed: usize,
    /// Passed or failed.
    pub graded: usize,
    /// Of those graded: requests that failed. A server that answers half of the questions is half as good.
    pub errors: usize,
    /// Logged and not graded: programs that were not run.
    pub not_graded: usize,
    /// Of the share passed, 95%: what the set's size lets one say about tasks like these.
    pub interval: Interval,
}

/// How a task went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskResult {
    pub category: Category,
    pub id: String,
    pub level: u8,
    pub outcome: Outcome,
    /// Why it did not pass.
    pub detail: Option<String>,
    pub finish_reason: Option<String>,
    pub output_tokens: Option<u64>,
    pub ttft_ms: Option<f64>,
    pub seconds: f64,
}

/// What became of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Pass,
    Fail,
    /// A program that was not run.
    NotGraded,
    /// The request failed, and the task with it.
    Error,
}

impl Outcome {
    /// Whether the task passed; `None` where that was not found out.
    pub(crate) fn has_passed(self) -> Option<bool> {
        match self {
            Self::Pass => Some(true),
            Self::Fail | Self::Error => Some(false),
            Self::NotGraded => None,
        }
    }
}

/// Of the tasks' requests.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Speed {
    /// Requests in flight at once.
    pub concurrency: usize,
    pub seconds: f64,
    /// Generated tokens of all answers together, over the whole time; `None` where the server counts none.
    pub output_tokens_per_s: Option<f64>,
    pub output_tokens: Option<u64>,
    /// Milliseconds to the first token.
    pub ttft_ms_median: Option<f64>,
    pub ttft_ms_p90: Option<f64>,
}

/// What the run took. What could not be read is absent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Cost {
    /// From starting the server to its being ready; only of a server started for this run.
    pub startup_seconds: Option<f64>,
    pub memory: Memory,
    pub energy: Energy,
}

/// What every version of a report begins with.
#[derive(Deserialize)]
struct Header {
    schema: String,
    schema_version: u32,
}

impl Report {
    pub(crate) fn new(label: String, url: String, model: String, own_server: Option<String>) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            schema: SCHEMA.to_owned(),
            schema_version: SCHEMA_VERSION,
            created: now.map_or(0, |time| time.as_secs()),
            label,
            url,
            model,
            own_server,
            tasks: None,
            perplexity: None,
            speed: None,
            cost: Cost::default(),
        }
    }

    /// Reads a report that [`Report::write`] wrote.
    ///
    /// # Errors
    /// It cannot be read, or is not one of a version that is known.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |why: String| EvalError::File { path: path.to_owned(), why };
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let no_report = |error: serde_json::Error| wrong(format!("it is no report of `plimsoll eval`: {error}"));
        // Before the fields, which another version may lack.
        let Header { schema, schema_version } = serde_json::from_str(&text).map_err(no_report)?;
        if (schema.as_str(), schema_version) != (SCHEMA, SCHEMA_VERSION) {
            let message = format!(
                "it is `{schema}` version {schema_version}; this program reads `{SCHEMA}` version {SCHEMA_VERSION}: \
                 evaluate again"
            );
            return Err(wrong(message));
        }
        serde_json::from_str(&text).map_err(no_report)
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self).expect("a report is JSON");
        fs::write(path, json + "\n")
            .map_err(|error| EvalError::File { path: path.to_owned(), why: format!("cannot write: {error}") })
    }
}

impl Score {
    /// Of each category that has results.
    pub(crate) fn of_results(results: &[TaskResult]) -> Vec<Self> {
        let score = |category| {
            let count = |test: fn(Outcome) -> bool| {
                results.iter().filter(|result| result.category == category && test(result.outcome)).count()
            };
            let passed = count(|outcome| outcome == Outcome::Pass);
            let graded = count(|outcome| outcome.has_passed().is_some());
            let errors = count(|outcome| outcome == Outcome::Error);
            let not_graded = count(|outcome| outcome == Outcome::NotGraded);
            Self { category, passed, graded, errors, not_graded, interval: wilson(passed, graded) }
        };
        let has_results = |score: &Self| score.graded + score.not_graded > 0;
        Category::ALL.into_iter().map(score).filter(has_results).collect()
    }
}
