//! An OpenAI-compatible server, whoever made it, as seen from a client: where it is, how it is asked, what it serves, and
//! how its streams and its refusals are read. What measures servers and what evaluates models ask them through this.
//!
//! | room | what it is for |
//! |---|---|
//! | `base` | a server's address in every form that people write it in |
//! | `http` | HTTP clients, and replies that are no streams |
//! | `models` | which model a server serves |
//! | `sse` | server-sent events out of pieces of a stream |
//!
//! It must never know what a payload means to whoever asked for it, or read a clock.

mod base;
mod error;
mod http;
mod models;
mod sse;

pub use base::Base;
pub use error::EndpointError;
pub use http::{Reuse, fault_message, http_client, read_limited, refusal, shorten, with_causes};
pub use models::only_model;
pub use sse::{SseEvent, SseParser, TooLong};
