//! The HTTP server: OpenAI's API over an [`EngineHandle`](plimsoll_engine::EngineHandle).
//!
//! [`ServerState::new`] makes a server that answers 503 to every request for tokens; [`serve`] lets it listen at once,
//! and [`ServerState::set_ready`] gives it its model when that is loaded. Inside, a request passes these rooms:
//! `accept` (connections), `router` and `watch` (its log line), `host` and `auth` (who may ask), `admission` (whether
//! there is room, before anything is read), `body` (bytes to wire types), `params` and `unserved` (what is valid),
//! `prompt` (text to ids), `generation` (engine requests, ids to text) and `sse` (the stream). Statuses of failures
//! are decided in `error` alone.
//!
//! This crate must never know how tokens are computed: no scheduler's insides, no tensors, no devices, no files.

mod accept;
mod admission;
mod auth;
mod body;
mod call;
mod chat;
mod chat_format;
mod choice;
mod completions;
mod config;
mod error;
mod generation;
mod health;
mod host;
mod logprobs;
mod messages;
mod metrics;
mod model;
mod models;
mod params;
mod prompt;
mod prompt_scores;
mod router;
mod speech;
mod sse;
mod stalled_write;
mod state;
mod tokenize;
mod tools;
mod unserved;
mod watch;

pub use accept::{ServeError, serve};
pub use config::{LoadLine, ServerConfig};
pub use model::{SamplingDefaults, ServedModel};
pub use router::router;
pub use state::ServerState;
