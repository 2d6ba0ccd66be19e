//! One request for tokens on its way through the server: its place, its deadline and its line in the log.

use std::time::Instant;

use axum::extract::Request;

use crate::ServerState;
use crate::admission::Permit;
use crate::auth::Caller;
use crate::body::stated_length;
use crate::error::ApiError;
use crate::watch::Entry;

/// A request that was let in.
pub(crate) struct Call {
    pub(crate) state: ServerState,
    pub(crate) permit: Permit,
    pub(crate) arrived: Instant,
    pub(crate) deadline: tokio::time::Instant,
    pub(crate) entry: Entry,
}

impl Call {
    /// Lets a request in, or not, by its head alone.
    pub(crate) fn admit(state: ServerState, caller: Caller, entry: Entry, request: &Request) -> Result<Self, ApiError> {
        state.check_open()?;
        let permit = state.admission.admit(caller, stated_length(request.headers()))?;
        let arrived = Instant::now();
        let deadline = (arrived + state.config.request_timeout).into();
        Ok(Self { state, permit, arrived, deadline, entry })
    }

    /// What the client is told when its deadline passes.
    pub(crate) fn deadline_exceeded(&self) -> ApiError {
        ApiError::Deadline(self.state.config.request_timeout)
    }
}

/// Does all that a request needs until its response begins, within the request's time.
pub(crate) async fn until_deadline<T>(
    call: Call,
    work: impl AsyncFnOnce(Call) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let (deadline, exceeded) = (call.deadline, call.deadline_exceeded());
    tokio::time::timeout_at(deadline, work(call)).await.unwrap_or(Err(exceeded))
}

/// The id of a response: `prefix`, and the client's name for the request or a name that no other has.
pub(crate) fn response_id(prefix: &str, request_id: Option<&str>) -> String {
    match request_id {
        Some(id) => format!("{prefix}-{id}"),
        None => format!("{prefix}-{:032x}", rand::random::<u128>()),
    }
}
