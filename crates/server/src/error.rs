//! Every way in which a request fails, and the only place that knows what each is in HTTP: its status, its headers and
//! its error object.

use std::time::Duration;

use axum::http::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use plimsoll_api::{ErrorBody, ErrorObject};
use plimsoll_core::SampleFault;
use plimsoll_engine::{AddError, StreamEnd, SubmitError};
use plimsoll_text::TextError;

/// Why a request got no tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    /// The request itself is at fault.
    #[error("{message}")]
    Invalid { message: String, param: Option<String>, code: Option<&'static str> },
    #[error("this server requires an API key that it knows: send the header `Authorization: Bearer YOUR_KEY`")]
    Unauthorized,
    #[error(
        "the request is for or from host `{name}`, and this server answers for loopback addresses only; \
         start it with `--allowed-host {name}` to change that"
    )]
    UnknownHost { name: String },
    #[error("there is nothing at {path}; the API is at /v1/chat/completions, /v1/completions and /v1/models")]
    NoSuchPath { path: String },
    #[error("{path} is not served yet")]
    EndpointNotServed { path: String },
    #[error("the model `{name}` does not exist here; this server serves `{served}`")]
    ModelNotFound { name: String, served: String },
    #[error("{path} does not take {method} requests")]
    MethodNotAllowed { method: String, path: String },
    #[error("the request's body did not arrive within {} s", .0.as_secs_f32())]
    SlowBody(Duration),
    #[error("the request was not finished within {} s, the longest that this server gives one", .0.as_secs_f32())]
    Deadline(Duration),
    #[error("the request's body is larger than {limit} bytes, the most that this server takes")]
    BodyTooLarge { limit: usize },
    #[error("the body must be JSON: send the header `Content-Type: application/json`")]
    NotJson,
    #[error("you have as many requests in this server as are allowed at once ({limit}); retry later")]
    TooManyRequests { limit: usize, retry_after: Duration },
    #[error("the server has as many requests as it was measured to carry well at once ({limit}); retry later")]
    AtLoadLine { limit: usize, retry_after: Duration },
    #[error("{0}")]
    Unready(Unready),
    #[error("the server is full: {what}; retry later")]
    QueueFull { what: &'static str, retry_after: Duration },
    #[error("the client read its stream too slowly")]
    SlowReader,
    #[error("the server failed: {0}")]
    Internal(&'static str),
}

/// Why no request is taken at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unready {
    #[error("the model is still being loaded; retry later")]
    Loading,
    #[error("the server is shutting down and takes no new requests")]
    Draining,
}

/// Clients that are told to come back while a model loads, or to another replica while one goes down.
const RETRY_WHEN_UNREADY: Duration = Duration::from_secs(5);

impl ApiError {
    /// A field's value is at fault. `message` goes on from the field's name.
    pub(crate) fn invalid(param: impl Into<String>, message: impl AsRef<str>) -> Self {
        let param = param.into();
        let message = format!("`{param}` {}", message.as_ref());
        Self::Invalid { message, param: Some(param), code: None }
    }

    /// A field that clients send, and that this server cannot honour.
    pub(crate) fn not_served(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not served yet: leave it out");
        Self::Invalid { message, param: Some(param), code: Some("not_served") }
    }

    /// Prompt and completion do not fit the model.
    pub(crate) fn context_exceeded(param: &str, message: String) -> Self {
        Self::Invalid { message, param: Some(param.to_owned()), code: Some("context_length_exceeded") }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::UnknownHost { .. } => StatusCode::FORBIDDEN,
            Self::NoSuchPath { .. } | Self::EndpointNotServed { .. } | Self::ModelNotFound { .. } => {
                StatusCode::NOT_FOUND
            }
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::SlowBody(_) | Self::Deadline(_) | Self::SlowReader => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NotJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyRequests { .. } | Self::AtLoadLine { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unready(_) | Self::QueueFull { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Unauthorized => "authentication_error",
            Self::UnknownHost { .. } => "permission_error",
            Self::SlowBody(_) | Self::Deadline(_) | Self::SlowReader => "timeout_error",
            Self::TooManyRequests { .. } | Self::AtLoadLine { .. } => "rate_limit_error",
            Self::Unready(_) | Self::QueueFull { .. } => "service_unavailable",
            Self::Internal(_) => "internal_error",
            _ => "invalid_request_error",
        }
    }

    /// Names the error for programs; also the label of refused requests in the metrics.
    pub(crate) fn code(&self) -> Option<&'static str> {
        Some(match self {
            Self::Invalid { code, .. } => return *code,
            Self::Unauthorized => "invalid_api_key",
            Self::UnknownHost { .. } => "unknown_host",
            Self::NoSuchPath { .. } => "not_found",
            Self::EndpointNotServed { .. } => "not_served",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::MethodNotAllowed { .. } => "method_not_allowed",
            Self::SlowBody(_) => "body_timeout",
            Self::Deadline(_) => "deadline_exceeded",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::NotJson => "unsupported_media_type",
            Self::TooManyRequests { .. } => "concurrency_limit",
            Self::AtLoadLine { .. } => "load_line",
            Self::Unready(Unready::Loading) => "loading",
            Self::Unready(Unready::Draining) => "draining",
            Self::QueueFull { .. } => "queue_full",
            Self::SlowReader => "slow_reader",
            Self::Internal(_) => "engine_fault",
        })
    }

    /// Whether its text may stand in a log: it repeats nothing that the client wrote.
    pub(crate) fn is_our_own_text(&self) -> bool {
        !matches!(self, Self::Invalid { .. } | Self::ModelNotFound { .. } | Self::UnknownHost { .. })
    }

    /// The error object, for a body or for a stream.
    pub(crate) fn body(&self) -> ErrorBody {
        let param = match self {
            Self::Invalid { param, .. } => param.clone(),
            Self::ModelNotFound { .. } => Some("model".to_owned()),
            _ => None,
        };
        let code = self.code().map(str::to_owned);
        ErrorBody { error: ErrorObject { message: self.to_string(), kind: self.kind().to_owned(), param, code } }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. }
            | Self::AtLoadLine { retry_after, .. }
            | Self::QueueFull { retry_after, .. } => Some(*retry_after),
            Self::Unready(_) => Some(RETRY_WHEN_UNREADY),
            _ => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after() {
            headers.insert(RETRY_AFTER, after.as_secs().max(1).into());
        }
        if matches!(self, Self::Internal(_)) {
            // Clients' libraries repeat every 5xx: a request that breaks something would break it again.
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
        }
        if matches!(self, Self::Unready(Unready::Draining)) {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // So that the log line can name it.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<SampleFault> for ApiError {
    fn from(fault: SampleFault) -> Self {
        match fault {
            SampleFault::NonFiniteLogits => Self::Internal("the model computed values that are not numbers"),
            SampleFault::OutOfMemory => Self::Internal("the device ran out of memory for this request"),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        if error.is_request_fault() {
            return Self::Invalid { message: error.to_string(), param: Some("messages".to_owned()), code: None };
        }
        match error {
            TextError::Encode(_) => Self::Invalid { message: error.to_string(), param: None, code: None },
            // The model's own template went wrong over this conversation; another may do.
            TextError::TemplateFault(_) | TextError::TemplateLimit(_) => {
                Self::Invalid { message: error.to_string(), param: Some("messages".to_owned()), code: None }
            }
            _ => Self::Internal("the tokenizer is broken"),
        }
    }
}

/// Of the engine's refusals; `retry_after` for those that pass.
pub(crate) fn of_submission(error: SubmitError, retry_after: Duration) -> ApiError {
    match error {
        SubmitError::QueueFull => ApiError::QueueFull { what: "its queue has no place left", retry_after },
        SubmitError::Draining => ApiError::Unready(Unready::Draining),
        SubmitError::Dead => ApiError::Internal("the engine has stopped"),
        SubmitError::TokenOutsideVocabulary { .. } => {
            ApiError::Invalid { message: error.to_string(), param: None, code: None }
        }
    }
}

/// Of a stream that ended before its request did; `retry_after` for what passes.
pub(crate) fn of_stream_end(end: Option<&StreamEnd>, retry_after: Duration) -> ApiError {
    match end {
        Some(StreamEnd::Refused(AddError::QueueFull { .. })) => of_submission(SubmitError::QueueFull, retry_after),
        Some(StreamEnd::Refused(error @ (AddError::TooLong { .. } | AddError::TooLargeForCache { .. }))) => {
            ApiError::context_exceeded("max_tokens", error.to_string())
        }
        Some(StreamEnd::Overrun) => ApiError::SlowReader,
        Some(StreamEnd::Shutdown) => ApiError::Unready(Unready::Draining),
        Some(StreamEnd::EngineFault) => ApiError::Internal("the engine has stopped"),
        Some(StreamEnd::Refused(_) | StreamEnd::Finished) | None => {
            ApiError::Internal("the engine ended a request without a reason")
        }
    }
}
