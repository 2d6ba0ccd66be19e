//! Harmony, the format of gpt-oss: a reply is messages, each with a channel, framed by control tokens.
//!
//! `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>`: what is in
//! `analysis` is thought, what is addressed to a function that the request offers (`to=functions.NAME`) calls it, all
//! else is content.

use std::sync::Arc;

use super::{Opening, Said};

/// Bytes of a header at most; more is no header.
const MAX_HEADER: usize = 1024;
/// Between two messages of one kind.
const PARAGRAPH: &str = "\n\n";

/// A control token of harmony's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Start,
    Channel,
    Constrain,
    Message,
    End,
    Call,
    Return,
}

impl Mark {
    pub(super) const ALL: [Self; 7] =
        [Self::Start, Self::Channel, Self::Constrain, Self::Message, Self::End, Self::Call, Self::Return];

    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Start => "<|start|>",
            Self::Channel => "<|channel|>",
            Self::Constrain => "<|constrain|>",
            Self::Message => "<|message|>",
            Self::End => "<|end|>",
            Self::Call => "<|call|>",
            Self::Return => "<|return|>",
        }
    }
}

/// Reads one reply.
pub(super) struct Harmony {
    state: State,
    /// The functions that may be called.
    names: Arc<[String]>,
    calls: usize,
    /// There was a message of this kind: the next is a new paragraph.
    has_content: bool,
    has_reasoning: bool,
    /// The message has no text yet.
    is_new: bool,
}

enum State {
    /// Between messages.
    Outside,
    Header(Header),
    Body(Body),
}

#[derive(Default)]
struct Header {
    /// Before the channel: role and, perhaps, recipient.
    sender: String,
    /// `None`: not named yet.
    channel: Option<String>,
    /// All text, to be given back where it is no header.
    text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Body {
    Content,
    Reasoning,
    Call(usize),
}

impl Header {
    fn push(&mut self, text: &str) {
        self.channel.as_mut().unwrap_or(&mut self.sender).push_str(text);
        self.text.push_str(text);
    }

    /// Whether it can still become one: a reply's first header has no role, and says nothing but whom it is for.
    fn is_plausible(&self) -> bool {
        let sender = self.sender.trim_start();
        let is_begun = self.channel.is_some() || sender.starts_with("assistant") || sender.starts_with("to=");
        let may_begin = "assistant".starts_with(sender) || "to=".starts_with(sender);
        self.text.len() <= MAX_HEADER && (is_begun || may_begin)
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.sender.split_whitespace().chain(self.channel.iter().flat_map(|channel| channel.split_whitespace()))
    }

    fn recipient(&self) -> Option<&str> {
        self.words().find_map(|word| word.strip_prefix("to=")).filter(|name| !name.is_empty())
    }

    fn channel_name(&self) -> &str {
        self.channel.as_deref().and_then(|channel| channel.split_whitespace().next()).unwrap_or("")
    }
}

impl Harmony {
    /// After a prompt that ends where the reply's first header begins, or as `opening` says.
    pub(super) fn new(opening: Opening, names: Arc<[String]>) -> Self {
        let state = match opening {
            Opening::Reply => State::Header(Header::default()),
            Opening::Reasoning => State::Body(Body::Reasoning),
            Opening::Content => State::Body(Body::Content),
        };
        Self { state, names, calls: 0, has_content: false, has_reasoning: false, is_new: true }
    }

    /// The prompt began a call of the function `name`.
    pub(super) fn begin_forced(&mut self, name: &str, said: &mut Said) {
        self.begin_call(name, said);
    }

    pub(super) fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Body(Body::Reasoning))
    }

    /// Takes ordinary text.
    pub(super) fn push(&mut self, text: &str, said: &mut Said) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Header(header) => {
                header.push(text);
                if !header.is_plausible() {
                    let text = std::mem::take(&mut header.text);
                    self.begin(Body::Content);
                    self.say(&text, said);
                }
            }
            State::Body(_) => self.say(text, said),
            State::Outside => {
                self.begin(Body::Content);
                self.say(text, said);
            }
        }
    }

    /// Takes a control token.
    pub(super) fn mark(&mut self, mark: Mark, said: &mut Said) {
        match (mark, &mut self.state) {
            (Mark::Message, State::Header(header)) => {
                let header = std::mem::take(header);
                self.begin_message(&header, said);
            }
            (Mark::Message, _) => self.begin(Body::Content),
            (Mark::Channel, State::Header(header)) if header.channel.is_none() => header.channel = Some(String::new()),
            // `<|constrain|>json`: the content's type, which is a word of the header like others.
            (Mark::Constrain, State::Header(header)) => header.push(" "),
            (Mark::Start, _) => {
                self.abandon_header(said);
                self.state = State::Header(Header::default());
            }
            (Mark::Channel, _) => {
                self.abandon_header(said);
                self.state = State::Header(Header { channel: Some(String::new()), ..Header::default() });
            }
            (Mark::Constrain, _) => {}
            (Mark::End | Mark::Call | Mark::Return, _) => {
                self.abandon_header(said);
                self.state = State::Outside;
            }
        }
    }

    pub(super) fn finish(&mut self, said: &mut Said) {
        self.abandon_header(said);
        self.state = State::Outside;
    }

    /// A header without a message: text that was held for nothing. A bare role or channel is none.
    fn abandon_header(&mut self, said: &mut Said) {
        let State::Header(header) = &self.state else { return };
        if header.channel.is_none() && !matches!(header.sender.trim(), "" | "assistant") {
            let text = header.text.clone();
            self.begin(Body::Content);
            self.say(&text, said);
        }
    }

    fn begin_message(&mut self, header: &Header, said: &mut Said) {
        let recipient = header.recipient().map(|name| name.strip_prefix("functions.").unwrap_or(name));
        match recipient.filter(|name| self.names.iter().any(|known| known == name)) {
            Some(name) => self.begin_call(name, said),
            None if header.channel_name() == "analysis" => self.begin(Body::Reasoning),
            None => self.begin(Body::Content),
        }
    }

    fn begin_call(&mut self, name: &str, said: &mut Said) {
        said.begin_call(self.calls, name);
        self.begin(Body::Call(self.calls));
        self.calls += 1;
    }

    fn begin(&mut self, body: Body) {
        self.is_new = true;
        self.state = State::Body(body);
    }

    fn say(&mut self, text: &str, said: &mut Said) {
        if text.is_empty() {
            return;
        }
        let (out, has_any) = match self.state {
            State::Body(Body::Call(index)) => return said.push_arguments(index, text),
            State::Body(Body::Reasoning) => (&mut said.reasoning, &mut self.has_reasoning),
            _ => (&mut said.content, &mut self.has_content),
        };
        if std::mem::take(&mut self.is_new) && std::mem::replace(has_any, true) {
            out.push_str(PARAGRAPH);
        }
        out.push_str(text);
    }
}
