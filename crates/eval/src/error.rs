//! What can go wrong, and what to change.

use std::path::PathBuf;

use plimsoll_endpoint::EndpointError;

pub(crate) type Result<T> = std::result::Result<T, EvalError>;

/// Why there is no report. A task whose request fails is no error: the report says so.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("{url} refused a request: {status}: {message}")]
    Refused { url: String, status: u16, message: String },
    #[error(
        "the model cannot be asked as a chat: {url} refused one: {status}: {message}. If it is a base model, give \
         --endpoint completions"
    )]
    ChatRefused { url: String, status: u16, message: String },
    #[error("{url} answered with something else than was asked for: {why}")]
    Reply { url: String, why: String },
    #[error(
        "the perplexity cannot be measured at {url}: /v1/completions there does not serve `echo` with `logprobs` ({why}). \
         Plimsoll on a CPU does, and so does vLLM"
    )]
    NoPromptLogprobs { url: String, why: String },
    #[error("cannot read {}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("{0}")]
    Option(String),
}
