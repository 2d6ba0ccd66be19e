//! The one error type of this crate.

use std::path::PathBuf;

/// Why a vocabulary, a text or a conversation could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not valid JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("this vocabulary cannot be used: {0}")]
    Vocabulary(String),
    #[error(
        "the checkpoint asks for the pre-tokenizer `{0}`, which is not known here; \
         serve the model from a folder that holds its tokenizer.json instead"
    )]
    UnknownPreTokenizer(String),
    #[error("the text cannot be encoded: {0}")]
    Encode(String),
    #[error(
        "the model has no chat template: send a prompt to /v1/completions, or start the server with --chat-template FILE"
    )]
    NoChatTemplate,
    #[error("the chat template cannot be compiled: {0}")]
    TemplateSyntax(String),
    /// The template itself refused the conversation (`raise_exception`).
    #[error("the model's chat template refused the conversation: {0}")]
    TemplateRefused(String),
    /// A field of the request that a template never gets to see.
    #[error("{0}")]
    InvalidChat(String),
    #[error("the chat template failed: {0}")]
    TemplateFault(String),
    #[error("the chat template was stopped: {0}")]
    TemplateLimit(String),
}

impl TextError {
    /// Whether the request is to blame, and not the model's files.
    pub fn is_request_fault(&self) -> bool {
        matches!(self, Self::TemplateRefused(_) | Self::InvalidChat(_) | Self::NoChatTemplate)
    }
}
