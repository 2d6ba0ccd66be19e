//! Why a server cannot be asked.

pub(crate) type Result<T> = std::result::Result<T, EndpointError>;

/// Each message says what to change.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    #[error("`{url}` is not a usable base URL ({why}); give one like http://127.0.0.1:8000")]
    Url { url: String, why: String },
    #[error("the API key holds characters that no HTTP header can; give the key alone, without spaces or line ends")]
    ApiKey,
    #[error("the HTTP client could not be built: {0}; for https the system needs CA certificates (ca-certificates)")]
    Client(#[source] reqwest::Error),
    #[error("{url} did not answer: {why}; is the server up, and is the address right?")]
    Unreachable { url: String, why: String },
    #[error(
        "{url} lists {}; say which one is meant (--model-name, of eval --served-model-name)",
        if .names.is_empty() { "no model".to_owned() } else { .names.join(", ") }
    )]
    ModelChoice { url: String, names: Vec<String> },
}
