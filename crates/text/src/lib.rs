//! Text on its way to tokens and back: tokenizers, chat templates, incremental detokenizing with stop strings.
//!
//! A request crosses this crate twice. On the way in, [`ChatTemplate::render`] makes a prompt of messages and
//! [`Tokenizer::encode_chat`] makes ids of it; on the way out, one [`Detokenizer`] a sequence makes text of ids, and one
//! [`Transcript`] tells the thoughts, the answer and the calls of tools in it apart.
//! Everything that a request says is untrusted: no string of it ever becomes a control token, and no model's own
//! template may loop, recurse or grow without bound.
//!
//! This crate must never know HTTP, the engine, a model's weights or the file format a vocabulary came from
//! (GGUF's vocabulary arrives as the plain [`GgufVocab`]), and it never reads a clock.

mod byte_pair;
mod chat_template;
mod control_tokens;
mod detokenizer;
mod error;
mod from_files;
mod from_gguf;
mod harmony_prompt;
mod pre_tokenizer;
mod sentence_piece;
mod speech;
mod stop_strings;
mod token_table;
mod tokenizer;

pub use chat_template::{ChatInput, ChatTemplate, RenderedChat};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use from_gguf::GgufVocab;
pub use speech::{CallPart, Dialect, Opening, ReasoningSyntax, Said, ToolSyntax, Transcript, TranscriptOptions};
pub use stop_strings::{StopMatcher, StopStrings};
pub use tokenizer::{SpecialTokens, Tokenizer};
