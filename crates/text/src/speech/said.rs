//! What was said, or what a piece of a stream adds to it.

/// Thoughts, answer and calls; of a whole choice, or of some of its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The answer.
    pub content: String,
    /// What the model thought.
    pub reasoning: String,
    /// In order; at most one part a call.
    pub calls: Vec<CallPart>,
}

/// A call, or what a piece adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallPart {
    /// Which of the choice's calls.
    pub index: usize,
    /// The function, in the call's first part.
    pub name: Option<String>,
    /// JSON, as far as the model kept to it.
    pub arguments: String,
}

impl Said {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.content.is_empty() && self.reasoning.is_empty() && self.calls.is_empty()
    }

    /// Adds what was said later.
    pub fn append(&mut self, later: Self) {
        self.content.push_str(&later.content);
        self.reasoning.push_str(&later.reasoning);
        for part in later.calls {
            match self.calls.last_mut().filter(|last| last.index == part.index && part.name.is_none()) {
                Some(last) => last.arguments.push_str(&part.arguments),
                None => self.calls.push(part),
            }
        }
    }

    pub(crate) fn begin_call(&mut self, index: usize, name: &str) {
        self.calls.push(CallPart { index, name: Some(name.to_owned()), arguments: String::new() });
    }

    /// More arguments of call `index`, which was begun, here or in an earlier piece.
    pub(crate) fn push_arguments(&mut self, index: usize, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.calls.last_mut().filter(|last| last.index == index) {
            Some(last) => last.arguments.push_str(text),
            None => self.calls.push(CallPart { index, name: None, arguments: text.to_owned() }),
        }
    }
}
