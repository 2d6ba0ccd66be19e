//! Writes a conversation without a template, with the same guarantee: what a request says never becomes a control
//! token.

use super::trust::{self, RenderedChat, Trust};
use crate::control_tokens::ControlTokens;

/// A conversation in the making.
pub(crate) struct ChatWriter<'a> {
    text: String,
    control: &'a ControlTokens,
}

impl<'a> ChatWriter<'a> {
    pub(crate) fn new(control: &'a ControlTokens) -> Self {
        Self { text: String::new(), control }
    }

    /// Our own text, whose control tokens are some.
    pub(crate) fn frame(&mut self, text: &str) {
        self.text.push_str(&trust::prepare_variable(text, self.control, Trust::MarkedTemplate));
    }

    /// Text of the request.
    pub(crate) fn text(&mut self, text: &str) {
        self.text.push_str(&trust::untrusted(text, self.control, Trust::MarkedTemplate));
    }

    pub(crate) fn finish(self) -> RenderedChat {
        RenderedChat::new(self.text, Trust::MarkedTemplate)
    }
}
