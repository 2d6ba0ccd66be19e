//! What can go wrong, and what to change.

use std::path::PathBuf;

pub(crate) type Result<T> = std::result::Result<T, EvalError>;

/// Why there is no report. A task whose request fails is no error: the report says so.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("`{url}` is no URL of a server: {why}")]
    Url { url: String, why: String },
    #[error("the API key holds characters that no HTTP header can")]
    ApiKey,
    #[error("cannot make an HTTP client: {0}")]
    Client(#[source] reqwest::Error),
    #[error("{url} cannot be asked: {why}; is a server running there?")]
    Unreachable { url: String, why: String },
    #[error("{url} refused a request: {status}: {message}")]
    Refused { url: String, status: u16, message: String },
    #[error(
        "the model cannot be asked as a chat: {url} refused one: {status}: {message}. If it is a base model, give \
         --endpoint completions"
    )]
    ChatRefused { url: String, status: u16, message: String },
    #[error("{url} answered with something else than was asked for: {why}")]
    Reply { url: String, why: String },
    #[error("{url} serves {}; name one with --served-model-name", listed(.names))]
    ModelChoice { url: String, names: Vec<String> },
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

fn listed(names: &[String]) -> String {
    if names.is_empty() { "no model that it lists".to_owned() } else { names.join(", ") }
}
