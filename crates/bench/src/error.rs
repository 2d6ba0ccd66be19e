//! What can stop a measurement before it has begun. A request that fails is no error here: it is a record.

use std::path::PathBuf;
use std::time::Duration;

use plimsoll_endpoint::EndpointError;

/// Why a run could not be started or its report not be written. Each message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("cannot read the prompts in {}: {why}", path.display())]
    Prompts { path: PathBuf, why: String },
    #[error("none of the {loaded} prompts of {source_name} has {min} to {max} tokens; widen the length filter")]
    NoPromptFits { source_name: String, loaded: usize, min: u32, max: u32 },
    #[error("{0}")]
    Config(String),
    #[error(
        "{0:.0?} passed with questions to the server (its model, token counts), and nothing was measured; give a longer \
         --budget, or a server that answers"
    )]
    NotReady(Duration),
    #[error("interrupted before anything was measured")]
    Interrupted,
    #[error("too many requests fail at concurrency 1 already: {0}")]
    NothingWorks(String),
    #[error("cannot read the report {}: {why}", path.display())]
    Report { path: PathBuf, why: String },
    #[error("cannot write {}: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("a request to {url} failed: {why}; every one is needed here")]
    Unanswered { url: String, why: String },
    #[error("the null server could not start: {0}")]
    NullServer(#[source] std::io::Error),
}

pub(crate) type Result<T> = std::result::Result<T, BenchError>;
