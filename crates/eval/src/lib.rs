//! How good a model is as it is served: a small fixed set of tasks, graded by exact or executable checks, and the
//! perplexity of a text, asked of any OpenAI-compatible endpoint; with the speed, memory, start-up time and energy of the
//! run beside them, so that formats and models can be compared.
//!
//! | room | what it is for |
//! |---|---|
//! | `task`, `tasks/*.toml` | the set |
//! | `ask` | how a task is put to a chat model, and to a base model |
//! | `client` | what is asked beyond what every client asks, and the replies |
//! | `extract`, `rules`, `grade` | from a reply to a verdict |
//! | `sandbox` | runs programs that models write, where that is asked for |
//! | `perplexity` | a text in windows |
//! | `measure` | memory and energy |
//! | `stats` | intervals and tests |
//! | `run`, `report`, `table`, `compare` | from the first question to what is read |
//!
//! It must never know how a server works inside, and never grade by another model's opinion.

mod ask;
mod client;
mod compare;
mod error;
mod extract;
mod grade;
mod measure;
mod perplexity;
mod report;
mod rules;
mod run;
mod sandbox;
mod stats;
mod table;
mod task;

pub use ask::Form;
pub use compare::Comparison;
pub use error::EvalError;
pub use measure::{Energy, Memory};
pub use perplexity::{Perplexity, WindowScore, Windows};
pub use report::{Cost, Outcome, Report, Score, Speed, TaskReport, TaskResult};
pub use run::{Answered, EvalConfig, OwnServer, Progress, run};
pub use sandbox::Sandbox;
pub use stats::Interval;
pub use task::{Category, SET_VERSION};
