//! The endless sequence of requests of a run: conversations in order, each turn made into a body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::client::Job;
use crate::config::{EndpointKind, Generation, Workload};
use crate::conversation::Conversation;
use crate::error::{BenchError, Result};
use crate::selection::with_salt;

/// Fields of a request that the measurement itself depends on.
const OWN_FIELDS: [&str; 5] = ["messages", "prompt", "stream", "stream_options", "n"];

/// Makes session `i` from conversation `i` modulo their number, the same for the same seed but for its salt. All rungs
/// of a ladder draw from one source, so that prompts recur as late as they can.
#[derive(Debug)]
pub(crate) struct RequestSource {
    /// Everything of the body but the prompt, the seed and the length of the output.
    fields: Map<String, Value>,
    kind: EndpointKind,
    conversations: Arc<[Conversation]>,
    /// Times of arrival that belong to the conversations, if they have any.
    trace: Vec<Duration>,
    /// The seed of the salts, if there are any: another one in each run, so that no run is answered from what an
    /// earlier one left in the server's cache.
    salt: Option<u64>,
    seed: Option<u64>,
    max_tokens: Option<u32>,
    /// An extra field says how long the output may be, whatever the conversation says.
    same_max_tokens: bool,
    /// The next conversation, the sessions begun, the requests made, and the runs begun.
    next: AtomicU64,
    sessions: AtomicU64,
    requests: AtomicU64,
    runs: AtomicU64,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Message<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

impl RequestSource {
    pub(crate) fn new(
        kind: EndpointKind,
        model: &str,
        generation: &Generation,
        workload: &Workload,
        conversations: Vec<Conversation>,
    ) -> Result<Self> {
        let turns = conversations.iter().all(|conversation| !conversation.turns.is_empty());
        assert!(turns && !conversations.is_empty(), "a selection holds at least one prompt");
        if let Some(field) = OWN_FIELDS.iter().find(|field| generation.extra_body.contains_key(**field)) {
            return Err(BenchError::Config(format!(
                "the extra body must not set `{field}`: what is measured needs it"
            )));
        }
        let mut fields = json!({
            "model": model,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let fields = fields.as_object_mut().map(std::mem::take).expect("an object was written above");
        let mut source = Self {
            fields,
            kind,
            conversations: conversations.into(),
            trace: Vec::new(),
            salt: workload.salt.then(|| workload.seed ^ run_nonce()),
            seed: generation.seed.filter(|_| !generation.extra_body.contains_key("seed")),
            max_tokens: Some(generation.max_tokens),
            same_max_tokens: false,
            next: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            runs: AtomicU64::new(0),
        };
        source.add_options(generation);
        Ok(source)
    }

    /// With the conversations' times of arrival: one each, ascending.
    pub(crate) fn with_trace(self, trace: Vec<Duration>) -> Self {
        Self { trace, ..self }
    }

    /// The same requests from the first on, for another server; this source does not go on by them.
    pub(crate) fn again(&self) -> Self {
        Self {
            fields: self.fields.clone(),
            conversations: self.conversations.clone(),
            trace: self.trace.clone(),
            next: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            runs: AtomicU64::new(0),
            ..*self
        }
    }

    pub(crate) fn kind(&self) -> EndpointKind {
        self.kind
    }

    pub(crate) fn trace(&self) -> &[Duration] {
        &self.trace
    }

    /// Begins a run: what its conversations share is new to the server, and a trace begins at its beginning.
    pub(crate) fn begin_run(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        if !self.trace.is_empty() {
            self.next.store(0, Ordering::Relaxed);
        }
    }

    fn add_options(&mut self, generation: &Generation) {
        if let Some(temperature) = generation.temperature {
            self.fields.insert("temperature".to_owned(), temperature.into());
        }
        if generation.ignore_eos {
            self.fields.insert("ignore_eos".to_owned(), true.into());
        }
        for (name, value) in &generation.extra_body {
            if name == "max_tokens" {
                self.max_tokens = value.as_u64().and_then(|limit| u32::try_from(limit).ok());
                self.same_max_tokens = true;
            } else if value.is_null() {
                self.fields.remove(name);
            } else {
                self.fields.insert(name.clone(), value.clone());
            }
        }
    }

    /// The next session, a conversation from its first turn on.
    pub(crate) fn session(self: &Arc<Self>) -> Session {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        Session {
            source: self.clone(),
            conversation: (next % self.conversations.len() as u64) as usize,
            serial: self.sessions.fetch_add(1, Ordering::Relaxed),
            turn: 0,
        }
    }
}

/// One conversation under way.
#[derive(Debug)]
pub(crate) struct Session {
    source: Arc<RequestSource>,
    conversation: usize,
    /// Counts all sessions of the source.
    serial: u64,
    turn: usize,
}

impl Session {
    /// The next request. None: the conversation is over.
    pub(crate) fn next_job(&mut self) -> Option<Job> {
        let source = &self.source;
        let conversation = &source.conversations[self.conversation];
        let turn = conversation.turns.get(self.turn)?;
        let texts = self.texts(conversation);
        self.turn += 1;
        let (messages, prompt) = match source.kind {
            EndpointKind::Chat => (Some(messages(&texts, conversation.prefix.is_some())), None),
            EndpointKind::Completions => (None, Some(texts.join("\n\n"))),
        };
        let own = turn.output.filter(|_| !source.same_max_tokens);
        let max_tokens = own.or(source.max_tokens);
        let index = source.requests.fetch_add(1, Ordering::Relaxed);
        let seed = source.seed.map(|seed| seed.wrapping_add(index));
        let body = Body { fields: &source.fields, max_tokens, seed, messages, prompt };
        let body = serde_json::to_vec(&body).expect("strings, numbers and JSON values serialize");
        Some(Job { body: Bytes::from(body), prompt_tokens: turn.tokens, max_tokens: max_tokens.unwrap_or(u32::MAX) })
    }

    /// What is sent with this turn: the prefix, what was said before, and the turn. Salted in the prefix, so that it is
    /// new to the server in each run, and in the first turn, so that the conversation is.
    fn texts(&self, conversation: &Conversation) -> Vec<String> {
        let salted = |text: &str, index: u64| match self.source.salt {
            Some(seed) => with_salt(text, seed, index),
            None => text.to_owned(),
        };
        let run = self.source.runs.load(Ordering::Relaxed);
        // Counted down from the top, where no session's number comes.
        let mut texts: Vec<String> = conversation.prefix.iter().map(|prefix| salted(prefix, !run)).collect();
        for (i, turn) in conversation.turns[..=self.turn].iter().enumerate() {
            texts.push(if i == 0 { salted(&turn.text, self.serial) } else { turn.text.clone() });
            if i < self.turn {
                texts.push(turn.reply.clone());
            }
        }
        texts
    }
}

/// The first text as the system's if there is a prefix; of the others, every second one is a reply.
fn messages(texts: &[String], has_prefix: bool) -> Vec<Message<'_>> {
    let role = |i: usize| match i.checked_sub(usize::from(has_prefix)) {
        None => "system",
        Some(turn) if turn % 2 == 0 => "user",
        Some(_) => "assistant",
    };
    texts.iter().enumerate().map(|(i, content)| Message { role: role(i), content }).collect()
}

/// A number that no other run has.
fn run_nonce() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_nanos() as u64 ^ u64::from(std::process::id()).rotate_left(40)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Turn;

    fn source(kind: EndpointKind, generation: &Generation, salt: bool) -> Result<Arc<RequestSource>> {
        let prompts = ["a", "b"].map(|text| Conversation::single(text, 1)).to_vec();
        let workload = Workload { salt, ..Workload::default() };
        RequestSource::new(kind, "m", generation, &workload, prompts).map(Arc::new)
    }

    fn body(job: Option<Job>) -> Value {
        serde_json::from_slice(&job.expect("a request").body).expect("JSON")
    }

    fn next(source: &Arc<RequestSource>) -> Value {
        let mut session = source.session();
        let first = body(session.next_job());
        assert!(session.next_job().is_none(), "one turn");
        first
    }

    #[test]
    fn bodies_are_what_the_api_takes() {
        let chat = source(EndpointKind::Chat, &Generation::default(), false).expect("a source");
        let expected = |content: &str| {
            json!({"model": "m", "max_tokens": 100, "stream": true, "stream_options": {"include_usage": true},
                   "temperature": 0.0, "messages": [{"role": "user", "content": content}]})
        };
        assert_eq!([next(&chat), next(&chat), next(&chat)], ["a", "b", "a"].map(expected));
        let base = source(EndpointKind::Completions, &Generation::default(), false).expect("a source");
        assert_eq!(next(&base)["prompt"], "a");
    }

    #[test]
    fn options_extras_seeds_and_salts() {
        let extra = json!({"temperature": null, "top_k": 5, "max_tokens": 7});
        let generation = Generation {
            seed: Some(40),
            ignore_eos: true,
            extra_body: extra.as_object().expect("an object").clone(),
            ..Generation::default()
        };
        let salted = source(EndpointKind::Completions, &generation, true).expect("a source");
        let (first, second, third) = (next(&salted), next(&salted), next(&salted));
        assert_eq!(first.get("temperature"), None);
        assert_eq!((&first["top_k"], &first["max_tokens"], &first["ignore_eos"]), (&json!(5), &json!(7), &json!(true)));
        assert_eq!((&first["seed"], &second["seed"]), (&json!(40), &json!(41)));
        assert_ne!(first["prompt"], third["prompt"]);
        assert!(third["prompt"].as_str().is_some_and(|prompt| prompt.ends_with("] a")));
    }

    #[test]
    fn what_the_measurement_needs_cannot_be_overridden() {
        for field in OWN_FIELDS {
            let extra_body = [(field.to_owned(), json!(1))].into_iter().collect();
            let generation = Generation { extra_body, ..Generation::default() };
            assert!(source(EndpointKind::Chat, &generation, false).is_err(), "{field}");
        }
    }

    /// A conversation of two turns behind a prefix, and one of a single turn of 5 output tokens.
    fn conversations() -> Vec<Conversation> {
        let turn = |text: &str, reply: &str| Turn { text: text.to_owned(), reply: reply.to_owned(), ..Turn::default() };
        let long = Conversation { prefix: Some("p".into()), turns: vec![turn("a", "A"), turn("b", "B")] };
        let mut short = Conversation::single("c", 1);
        short.turns[0].output = Some(5);
        vec![long, short]
    }

    fn of(kind: EndpointKind, salt: bool) -> Arc<RequestSource> {
        let workload = Workload { salt, ..Workload::default() };
        let source = RequestSource::new(kind, "m", &Generation::default(), &workload, conversations());
        Arc::new(source.expect("a source"))
    }

    #[test]
    fn each_turn_brings_all_that_was_said() {
        let source = of(EndpointKind::Chat, false);
        let mut session = source.session();
        let said = |job| {
            let messages = body(job)["messages"].as_array().cloned().expect("messages");
            let said = messages.iter().map(|m| format!("{}: {}", m["role"], m["content"]).replace('"', ""));
            said.collect::<Vec<_>>()
        };
        assert_eq!(said(session.next_job()), ["system: p", "user: a"]);
        assert_eq!(said(session.next_job()), ["system: p", "user: a", "assistant: A", "user: b"]);
        assert!(session.next_job().is_none());
        assert_eq!(body(source.session().next_job())["max_tokens"], 5);
        let mut session = of(EndpointKind::Completions, false).session();
        session.next_job();
        assert_eq!(body(session.next_job())["prompt"], "p\n\na\n\nA\n\nb");
    }

    #[test]
    fn what_is_shared_is_new_in_each_run_and_what_is_not_in_each_session() {
        let source = of(EndpointKind::Chat, true);
        let contents = |session: &mut Session| {
            let messages = body(session.next_job())["messages"].as_array().cloned().expect("messages");
            messages.iter().map(|m| m["content"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
        };
        let mut first = source.session();
        let (one, two) = (contents(&mut first), contents(&mut first));
        assert_eq!(one[..2], two[..2], "a conversation goes on as it began");
        source.session();
        let again = contents(&mut source.session());
        assert_eq!(one[0], again[0], "the prefix is shared");
        assert_ne!(one[1], again[1], "the turn is not");
        source.begin_run();
        source.session();
        assert_ne!(contents(&mut source.session())[0], one[0], "another run");
        let other = of(EndpointKind::Chat, true);
        assert_ne!(contents(&mut other.session())[1], one[1], "another source");
    }

    #[test]
    fn a_source_that_is_begun_again_leaves_the_first_as_it_was() {
        let source = source(EndpointKind::Chat, &Generation { seed: Some(3), ..Generation::default() }, false);
        let source = source.expect("a source");
        let first = next(&source);
        let again = Arc::new(source.again());
        assert_eq!((next(&again), again.kind()), (first, EndpointKind::Chat));
        assert_eq!(next(&again), next(&source), "neither has gone on by the other");
    }

    #[test]
    fn a_trace_begins_anew_with_each_run() {
        let trace = [1, 2].map(Duration::from_secs).to_vec();
        let prompts = ["a", "b"].map(|text| Conversation::single(text, 1)).to_vec();
        let (generation, workload) = (Generation::default(), Workload::default());
        let source = RequestSource::new(EndpointKind::Completions, "m", &generation, &workload, prompts);
        let source = Arc::new(source.expect("a source").with_trace(trace));
        assert_eq!((next(&source)["prompt"].clone(), source.trace().len()), (json!("a"), 2));
        source.begin_run();
        assert_eq!(next(&source)["prompt"], "a");
        assert_eq!(next(&source)["prompt"], "b");
    }
}
