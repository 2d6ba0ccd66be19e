//! What a model says, told apart as it comes: what it thinks, what it answers, which tools it calls.
//!
//! Models write all three into one stream, each family in a syntax of its own ([`Dialect`]). A [`Transcript`] reads one
//! sequence's tokens and adds to a [`Said`]. The readers below it are pure, hold little text, and do not mind where
//! the stream is cut: any cut of one text makes the same [`Said`]. What is malformed is content as it stands; a call
//! whose arguments were already passed on stays one, and what follows it is content.
//!
//! This room must never know a model's name, a request's JSON or a schema: arguments are passed on as written.

mod call_json;
mod dialect;
mod harmony;
mod hermes;
mod leading;
mod markers;
mod python;
mod said;
mod think;
mod transcript;

pub use dialect::{Dialect, Opening, ReasoningSyntax, ToolSyntax};
pub(crate) use dialect::{forced_call, opens_thoughts};
pub use said::{CallPart, Said};
pub use transcript::{Transcript, TranscriptOptions};

/// Reads the text of one choice in one syntax.
pub(crate) trait Reader: Send {
    /// Takes the next piece of text.
    fn push(&mut self, text: &str, said: &mut Said);
    /// The text ended: gives what was held back.
    fn finish(&mut self, said: &mut Said);
}

#[cfg(test)]
mod tests;
