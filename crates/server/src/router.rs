//! Which path leads to which room, and what every request passes on its way.

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use crate::auth::require_key;
use crate::error::ApiError;
use crate::host::require_known_host;
use crate::watch::watch;
use crate::{ServerState, chat, completions, health, models, tokenize};

/// The server as a tower service, for [`crate::serve`].
pub fn router(state: ServerState) -> Router {
    let for_tokens = Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/responses", post(not_served))
        .route("/v1/embeddings", post(not_served))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route_layer(from_fn_with_state(state.clone(), require_key));
    Router::new()
        .merge(for_tokens)
        .route("/", get(health::about))
        .route("/health", get(health::health))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/load", get(health::load))
        .route("/metrics", get(health::metrics))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_such_path)
        .layer(from_fn_with_state(state.clone(), require_known_host))
        .layer(from_fn_with_state(state.clone(), watch))
        .with_state(state)
}

/// A path, short enough to be said back.
fn shown(path: &str) -> String {
    path.chars().take(128).collect()
}

async fn not_served(request: Request) -> ApiError {
    ApiError::EndpointNotServed { path: shown(request.uri().path()) }
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::NoSuchPath { path: shown(request.uri().path()) }
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed { method: request.method().to_string(), path: shown(request.uri().path()) }
}
