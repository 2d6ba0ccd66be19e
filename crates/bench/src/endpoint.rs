//! What a server is asked before a run: which model it serves, and how long prompts are in its tokens.

use std::time::Duration;

use reqwest::Url;
use serde_json::{Value, json};

use crate::client::with_causes;
use crate::config::{Endpoint, EndpointKind};
use crate::error::{BenchError, Result};

/// How a server is asked its small questions: each within `patience`, so that one that hangs delays a run, not stops it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) http: &'a reqwest::Client,
    pub(crate) base: &'a Base,
    pub(crate) patience: Duration,
}

/// The root of a server: no trailing slash, no `/v1`.
#[derive(Clone, Debug)]
pub(crate) struct Base(Url);

impl Base {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| BenchError::Url { url: text.to_owned(), why: why.to_owned() };
        let trimmed = text.trim().trim_end_matches('/');
        let root = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
        let url = Url::parse(&format!("{root}/")).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("it must begin with http:// or https:// and a host"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it must have no query"));
        }
        Ok(Self(url))
    }

    pub(crate) fn root(&self) -> &Url {
        &self.0
    }

    pub(crate) fn join(&self, path: &str) -> Url {
        self.0.join(path).expect("a relative path joins any http URL")
    }

    /// Where requests for tokens go.
    pub(crate) fn generate(&self, kind: EndpointKind) -> Url {
        self.join(match kind {
            EndpointKind::Chat => "v1/chat/completions",
            EndpointKind::Completions => "v1/completions",
        })
    }
}

/// The model that requests name: the configured one, else the only one the server lists.
pub(crate) async fn find_model(asking: Asking<'_>, endpoint: &Endpoint) -> Result<String> {
    if let Some(model) = &endpoint.model {
        return Ok(model.clone());
    }
    let url = asking.base.join("v1/models");
    let unreachable = |why: String| BenchError::Unreachable { url: url.to_string(), why };
    let request = asking.http.get(url.clone()).timeout(asking.patience);
    let response = request.send().await.map_err(|error| unreachable(with_causes(&error)))?;
    let response = response.error_for_status().map_err(|error| unreachable(with_causes(&error)))?;
    let list: Value = response.json().await.map_err(|error| unreachable(with_causes(&error)))?;
    let entries = list.get("data").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut names: Vec<String> = entries.iter().filter_map(|m| Some(m.get("id")?.as_str()?.to_owned())).collect();
    match names.len() {
        1 => Ok(names.remove(0)),
        _ => Err(BenchError::ModelChoice { url: url.to_string(), names }),
    }
}

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
        let reply: Value = response.json().await.ok()?;
        let counted = reply.get("count").and_then(Value::as_u64);
        let listed = || reply.get("tokens").and_then(Value::as_array).map(|tokens| tokens.len() as u64);
        u32::try_from(counted.or_else(listed)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_in_every_form() {
        for text in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", " http://h:1 "] {
            let base = Base::parse(text).expect(text);
            assert_eq!(base.generate(EndpointKind::Chat).as_str(), "http://h:1/v1/chat/completions");
            assert_eq!(base.join("tokenize").as_str(), "http://h:1/tokenize");
        }
        let base = Base::parse("https://h/some/prefix/v1").expect("a prefix");
        assert_eq!(base.generate(EndpointKind::Completions).as_str(), "https://h/some/prefix/v1/completions");
    }

    #[test]
    fn what_is_no_base_url_is_refused() {
        for text in ["", "localhost:8000", "127.0.0.1:8000", "ftp://h", "http://", "http://h?x=1"] {
            assert!(Base::parse(text).is_err(), "{text}");
        }
    }
}
