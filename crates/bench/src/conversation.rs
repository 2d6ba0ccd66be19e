//! What is sent: conversations of one turn or several, each turn with all that was said before it.

use std::sync::Arc;

/// One turn of a person.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) text: String,
    /// Tokens of the request's own texts: of this one and all that is sent along with it.
    pub(crate) tokens: u32,
    /// Output tokens that this turn asks for at most. None: as many as every other.
    pub(crate) output: Option<u32>,
    /// What the file says was answered: sent along with the next turn, so that all servers get the same requests.
    pub(crate) reply: String,
}

/// Turns that follow one another, each sent when the one before it was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conversation {
    /// Text that other conversations begin with, too.
    pub(crate) prefix: Option<Arc<str>>,
    /// At least one.
    pub(crate) turns: Vec<Turn>,
}

impl Conversation {
    /// A single prompt.
    pub(crate) fn single(text: impl Into<String>, tokens: u32) -> Self {
        let turn = Turn { text: text.into(), tokens, ..Turn::default() };
        Self { prefix: None, turns: vec![turn] }
    }
}
