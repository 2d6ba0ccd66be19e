//! What the server says about itself: health, version, load, metrics, and a word to whoever opens it in a browser.

use axum::Json;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use plimsoll_api::{HealthReport, LoadReport, VersionReport};

use crate::ServerState;
use crate::error::{ApiError, Unready};

fn ok() -> Json<HealthReport> {
    Json(HealthReport { status: "ok".to_owned() })
}

/// 200 only if tokens come out: the engine runs, and no request waits for a step that never ends.
pub(crate) async fn health(State(state): State<ServerState>) -> Result<Json<HealthReport>, ApiError> {
    let stats = state.model()?.engine.stats();
    if !stats.is_alive && !state.is_draining() {
        return Err(ApiError::Internal("the engine has stopped"));
    }
    if stats.stalled_for > state.config.stall_timeout {
        return Err(ApiError::Internal("the engine is stuck: requests wait, and no step ends"));
    }
    Ok(ok())
}

/// 200 while restarting the process would help nobody: also while the model loads, and while requests finish.
pub(crate) async fn live(State(state): State<ServerState>) -> Result<Json<HealthReport>, ApiError> {
    if state.model().is_ok() { health(State(state)).await } else { Ok(ok()) }
}

/// 200 while new requests are taken.
pub(crate) async fn ready(State(state): State<ServerState>) -> Result<Json<HealthReport>, ApiError> {
    state.check_open()?;
    if state.model()?.engine.stats().is_draining {
        return Err(ApiError::Unready(Unready::Draining));
    }
    health(State(state)).await
}

pub(crate) async fn version() -> Json<VersionReport> {
    Json(VersionReport { version: env!("CARGO_PKG_VERSION").to_owned() })
}

pub(crate) async fn load(State(state): State<ServerState>) -> Json<LoadReport> {
    let load = state.admission.load();
    let (sequences, queued_tokens) = state.admission.limits();
    let running = state.model().map_or(0, |model| u64::from(model.engine.stats().scheduler.running));
    Json(LoadReport {
        server_load: load.sequences as u64,
        running,
        waiting: (load.sequences as u64).saturating_sub(running),
        limit: sequences as u64,
        waiting_prompt_tokens: load.queued_tokens,
        waiting_prompt_tokens_limit: queued_tokens,
    })
}

pub(crate) async fn metrics(State(state): State<ServerState>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], state.metrics.render(&state))
}

pub(crate) async fn about(State(state): State<ServerState>) -> String {
    let model = state.model().map_or("(loading)", |model| model.name.as_str());
    format!(
        "Plimsoll {version}, serving {model} over OpenAI's API.\n\n\
         POST /v1/chat/completions   POST /v1/completions   GET /v1/models\n\
         POST /tokenize   POST /detokenize\n\
         GET /health   GET /health/live   GET /health/ready   GET /version   GET /load   GET /metrics\n",
        version = env!("CARGO_PKG_VERSION"),
    )
}
