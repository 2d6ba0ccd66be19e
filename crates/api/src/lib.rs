//! The OpenAI wire types, with vLLM's extras, as the server reads and writes them and the load generator writes and
//! reads them: every type goes both ways. Requests name every field a client is known to send, so that a server can
//! tell a field it does not serve from a misspelt one; what is not served yet is kept as plain JSON.
//!
//! Types only. This crate must never know HTTP, a tokenizer, defaults that depend on a model, or what is valid.

mod chat;
mod common;
mod completions;
mod error;
mod fields;
mod models;
mod request;
mod status;
mod tokenize;
mod tools;
mod usage;

pub use chat::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ContentPart, Delta, Message, MessageContent,
    ResponseMessage, Role, TokenLogprob, TopLogprob,
};
pub use common::{FinishReason, StreamOptions, StringOrList};
pub use completions::{Completion, CompletionChoice, CompletionLogprobs, Prompt, PromptLogprob, PromptLogprobList};
pub use error::{ErrorBody, ErrorObject};
pub use fields::{KeyError, field_names, top_level_keys};
pub use models::{Model, ModelList};
pub use request::{ChatRequest, CompletionRequest, SharedFields};
pub use status::{HealthReport, LoadReport, VersionReport};
pub use tokenize::{DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse};
pub use tools::{
    FunctionCall, FunctionDefinition, FunctionDelta, FunctionKind, FunctionName, NamedTool, Tool, ToolCall,
    ToolCallDelta, ToolChoice, ToolMode,
};
pub use usage::{CompletionTokensDetails, PromptTokensDetails, Usage};

/// The data of the event that ends a stream.
pub const STREAM_END: &str = "[DONE]";
