//! What a server is asked before a run: which model it serves, and how long prompts are in its tokens.

use std::time::Duration;

pub(crate) use plimsoll_endpoint::Base;
use plimsoll_endpoint::{only_model, read_limited};
use reqwest::Url;
use serde_json::{Value, json};

use crate::config::{Endpoint, EndpointKind};
use crate::error::Result;

/// How a server is asked its small questions: each within `patience`, so that one that hangs delays a run, not stops it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) http: &'a reqwest::Client,
    pub(crate) base: &'a Base,
    pub(crate) patience: Duration,
}

/// Where requests for tokens go.
pub(crate) fn generate(base: &Base, kind: EndpointKind) -> Url {
    base.join(match kind {
        EndpointKind::Chat => "v1/chat/completions",
        EndpointKind::Completions => "v1/completions",
    })
}

/// The model that requests name: the configured one, else the only one the server lists.
pub(crate) async fn find_model(asking: Asking<'_>, endpoint: &Endpoint) -> Result<String> {
    match &endpoint.model {
        Some(model) => Ok(model.clone()),
        None => Ok(only_model(asking.http, asking.base, asking.patience).await?),
    }
}

/// No list of a text's tokens is longer.
const LARGEST_REPLY: usize = 8 << 20;

/// The two forms of `/tokenize` that servers have.
#[derive(Clone, Copy, Debug)]
enum Dialect {
    /// `{"prompt": ...}`, answered with a count: Plimsoll, vLLM, SGLang.
    Prompt,
    /// `{"content": ...}`, answered with the tokens: llama.cpp.
    Content,
}

/// Counts tokens by asking the server.
#[derive(Debug)]
pub(crate) struct RemoteTokenizer<'a> {
    asking: Asking<'a>,
    model: &'a str,
    dialect: Dialect,
}

impl<'a> RemoteTokenizer<'a> {
    /// None if the server has no `/tokenize` of a known form.
    pub(crate) async fn probe(asking: Asking<'a>, model: &'a str) -> Option<Self> {
        for dialect in [Dialect::Prompt, Dialect::Content] {
            let candidate = Self { asking, model, dialect };
            // llama.cpp answers the other form with an empty list, so only a count above 0 shows that it understood.
            if candidate.count("How many tokens are these?").await.is_some_and(|count| count > 0) {
                return Some(candidate);
            }
        }
        None
    }

    /// One that has not been tried.
    #[cfg(test)]
    pub(crate) fn known(asking: Asking<'a>, model: &'a str) -> Self {
        Self { asking, model, dialect: Dialect::Prompt }
    }

    /// Tokens of `text` without special tokens.
    pub(crate) async fn count(&self, text: &str) -> Option<u32> {
        let body = match self.dialect {
            Dialect::Prompt => json!({"model": self.model, "prompt": text, "add_special_tokens": false}),
            Dialect::Content => json!({"content": text, "add_special": false}),
        };
        let Asking { http, base, patience } = self.asking;
        let request = http.post(base.join("tokenize")).timeout(patience).json(&body);
        let response = request.send().await.ok()?.error_for_status().ok()?;
        let reply: Value = serde_json::from_slice(&read_limited(response, LARGEST_REPLY).await.ok()?).ok()?;
        let counted = reply.get("count").and_then(Value::as_u64);
        let listed = || reply.get("tokens").and_then(Value::as_array).map(|tokens| tokens.len() as u64);
        u32::try_from(counted.or_else(listed)?).ok()
    }
}
