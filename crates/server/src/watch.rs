//! What is seen of every request from outside: an id, one line in the log, a count, and a 500 in place of a panic.
//! The line says who asked for what and how it went; never a word of a prompt.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::FutureExt;
use hyper::body::{Frame, SizeHint};

use crate::ServerState;
use crate::error::ApiError;
use crate::params::is_plain_id;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a client that left before its response was complete has in the log.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// What the rooms further in add to a request's log line.
#[derive(Clone, Default)]
pub(crate) struct Entry(Arc<EntryFields>);

#[derive(Default)]
struct EntryFields {
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    fault: OnceLock<Fault>,
}

/// An error's code and its text, unless the text may repeat what the client wrote.
struct Fault {
    code: &'static str,
    message: Option<String>,
}

impl Entry {
    pub(crate) fn set_prompt_tokens(&self, tokens: u64) {
        self.0.prompt_tokens.store(tokens, Ordering::Relaxed);
    }

    pub(crate) fn set_generated_tokens(&self, tokens: u64) {
        self.0.generated_tokens.store(tokens, Ordering::Relaxed);
    }

    /// The request failed; the first error stands.
    pub(crate) fn set_fault(&self, error: &ApiError) {
        let message = error.is_our_own_text().then(|| error.to_string());
        let _ = self.0.fault.set(Fault { code: error.code().unwrap_or("invalid"), message });
    }
}

/// Outermost of all: whatever happens further in, the client gets a response and the log its line.
pub(crate) async fn watch(State(state): State<ServerState>, mut request: Request, next: Next) -> Response {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| is_plain_id(id));
    let id = given.map_or_else(|| format!("{:032x}", rand::random::<u128>()), str::to_owned);
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let entry = Entry::default();
    request.extensions_mut().insert(entry.clone());
    let mut line = Line {
        arrived: Instant::now(),
        method: request.method().clone(),
        is_complete: false,
        status: 0,
        id,
        path,
        entry,
        state,
    };
    let answered = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| ApiError::Internal("it broke one of its own rules").into_response());
    line.status = response.status().as_u16();
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        line.entry.set_fault(&error);
    }
    if let Ok(id) = HeaderValue::from_str(&line.id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    line.is_complete = line.method == Method::HEAD || response.body().is_end_stream();
    response.map(|body| Body::new(WatchedBody { body, line }))
}

/// A request's line, written when it is dropped.
struct Line {
    state: ServerState,
    arrived: Instant,
    id: String,
    method: Method,
    path: String,
    status: u16,
    /// The response was handed over to its last byte.
    is_complete: bool,
    entry: Entry,
}

impl Drop for Line {
    fn drop(&mut self) {
        let status = if self.is_complete { self.status } else { CLIENT_CLOSED_REQUEST };
        let fault = self.entry.0.fault.get();
        let error = fault.map(|fault| fault.code);
        self.state.metrics.note_response(&self.path, status, error);
        let prompt_tokens = self.entry.0.prompt_tokens.load(Ordering::Relaxed);
        let generated_tokens = self.entry.0.generated_tokens.load(Ordering::Relaxed);
        let ms = self.arrived.elapsed().as_secs_f64() * 1e3;
        let (id, method, path) = (&self.id, &self.method, &self.path);
        let cause = fault.and_then(|fault| fault.message.as_deref());
        if status >= 500 {
            tracing::warn!(%method, path, status, ms, prompt_tokens, generated_tokens, error, cause, id, "request");
        } else if self.method == Method::GET || self.method == Method::HEAD {
            tracing::debug!(%method, path, status, ms, error, id, "request");
        } else {
            tracing::info!(%method, path, status, ms, prompt_tokens, generated_tokens, error, cause, id, "request");
        }
    }
}

/// A response's body, and the line that is written at its end. The body goes first: a generation in it leaves its
/// counts in the line.
struct WatchedBody {
    body: Body,
    line: Line,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if matches!(frame, Poll::Ready(None)) || (frame.is_ready() && self.body.is_end_stream()) {
            self.line.is_complete = true;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
