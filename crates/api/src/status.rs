//! What the server says about itself: health, version and load.

use serde::{Deserialize, Serialize};

/// `GET /health`, `/health/live`, `/health/ready`, where the answer is 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// `ok`
    pub status: String,
}

/// `GET /version`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReport {
    pub version: String,
}

/// `GET /load`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Sequences in the server, running or waiting (vLLM's name).
    pub server_load: u64,
    /// Sequences in the batch.
    pub running: u64,
    /// Sequences waiting for a place in the batch.
    pub waiting: u64,
    /// Sequences that may be in the server at once; beyond it requests are refused.
    pub limit: u64,
    /// Prompt tokens that wait for their first step.
    pub waiting_prompt_tokens: u64,
    /// Prompt tokens that may wait at once.
    pub waiting_prompt_tokens_limit: u64,
}
