//! What a reader must know before believing a result, each said once and in full.

use serde::{Deserialize, Serialize};

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// The server or its machine was not the same at the end as at the beginning.
    Drift,
    /// The client was too near its own ceiling.
    ClientLimited,
    /// The server's token counts are not what its replies hold.
    UsageWrong,
    /// The server sends no token counts.
    UsageMissing,
    /// Prompts were answered from the server's prefix cache though each was to be new to it.
    CachedTokens,
    /// This process may not open enough connections for the concurrency asked for.
    Descriptors,
    /// Arrivals that were never sent, because too many requests were in flight.
    Dropped,
    /// Requests that were cut off at the end of the time.
    Cut,
    /// Ended by a person.
    Interrupted,
    /// A part of the search was left out.
    NotConfirmed,
    /// A rung that failed once and did not fail again.
    NotRepeated,
}

/// One thing that a report says about its own figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub kind: FindingKind,
    /// A whole sentence.
    pub text: String,
}

impl Finding {
    pub(crate) fn new(kind: FindingKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// Whether the result must not be used as it stands.
    pub fn invalidates(&self) -> bool {
        matches!(self.kind, FindingKind::Drift | FindingKind::ClientLimited | FindingKind::UsageWrong)
    }
}
