//! The endless sequence of requests of a run: prompts in order, each made into a body.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::client::Job;
use crate::config::{EndpointKind, Generation, Workload};
use crate::error::{BenchError, Result};
use crate::prompts::{Prompt, with_salt};

/// Fields of a request that the measurement itself depends on.
const OWN_FIELDS: [&str; 5] = ["messages", "prompt", "stream", "stream_options", "n"];

/// Makes request `i` from prompt `i` modulo their number, the same for the same seed. All rungs of a ladder draw from
/// one source, so that prompts recur as late as they can.
#[derive(Debug)]
pub(crate) struct RequestSource {
    /// Everything of the body but the prompt and the seed.
    fields: Map<String, Value>,
    kind: EndpointKind,
    prompts: Vec<Prompt>,
    /// The seed of the salts, if there are any.
    salt: Option<u64>,
    seed: Option<u64>,
    next: AtomicU64,
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<[Message<'a>; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a str>,
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
        prompts: Vec<Prompt>,
    ) -> Result<Self> {
        assert!(!prompts.is_empty(), "a selection holds at least one prompt");
        if let Some(field) = OWN_FIELDS.iter().find(|field| generation.extra_body.contains_key(**field)) {
            return Err(BenchError::Config(format!(
                "the extra body must not set `{field}`: what is measured needs it"
            )));
        }
        let mut fields = json!({
            "model": model,
            "max_tokens": generation.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let fields = fields.as_object_mut().map(std::mem::take).expect("an object was written above");
        let mut source = Self {
            fields,
            kind,
            prompts,
            salt: workload.salt.then_some(workload.seed),
            seed: generation.seed.filter(|_| !generation.extra_body.contains_key("seed")),
            next: AtomicU64::new(0),
        };
        source.add_options(generation);
        Ok(source)
    }

    fn add_options(&mut self, generation: &Generation) {
        if let Some(temperature) = generation.temperature {
            self.fields.insert("temperature".to_owned(), temperature.into());
        }
        if generation.ignore_eos {
            self.fields.insert("ignore_eos".to_owned(), true.into());
        }
        for (name, value) in &generation.extra_body {
            if value.is_null() {
                self.fields.remove(name);
            } else {
                self.fields.insert(name.clone(), value.clone());
            }
        }
    }

    /// The next request.
    pub(crate) fn next_job(&self) -> Job {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let prompt = &self.prompts[(index % self.prompts.len() as u64) as usize];
        let salted = self.salt.map(|seed| with_salt(&prompt.text, seed, index));
        let text = salted.as_deref().unwrap_or(&prompt.text);
        let (messages, plain) = match self.kind {
            EndpointKind::Chat => (Some([Message { role: "user", content: text }]), None),
            EndpointKind::Completions => (None, Some(text)),
        };
        let seed = self.seed.map(|seed| seed.wrapping_add(index));
        let body = Body { fields: &self.fields, seed, messages, prompt: plain };
        let body = serde_json::to_vec(&body).expect("strings, numbers and JSON values serialize");
        Job { body: Bytes::from(body), prompt_tokens: prompt.tokens }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(kind: EndpointKind, generation: &Generation, salt: bool) -> Result<RequestSource> {
        let prompts = ["a", "b"].map(|text| Prompt { text: text.to_owned(), tokens: 1 }).to_vec();
        RequestSource::new(kind, "m", generation, &Workload { salt, ..Workload::default() }, prompts)
    }

    fn next(source: &RequestSource) -> Value {
        serde_json::from_slice(&source.next_job().body).expect("JSON")
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
}
