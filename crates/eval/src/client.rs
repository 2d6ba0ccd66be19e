//! What is asked of an OpenAI-compatible server: its model, one streamed answer, the log probabilities of a text. A proxy
//! set in the environment is not used.

use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Response, Url};
use serde_json::{Value, json};

use crate::error::{EvalError, Result};

/// The longest reply that is taken, in bytes.
const MAX_REPLY: usize = 32 << 20;
const MAX_MESSAGE: usize = 500;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One model of one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    pub(crate) model: String,
}

/// A generated answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    /// Without what the server tells apart as reasoning.
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) finish: Option<String>,
    /// As the server counts them; `None` where it does not tell.
    pub(crate) output_tokens: Option<u64>,
    /// To the first text or reasoning.
    pub(crate) first_after: Option<Duration>,
    pub(crate) took: Duration,
}

/// A text as the server's tokenizer cuts it.
#[derive(Clone, Debug)]
pub(crate) struct ScoredText {
    pub(crate) tokens: Vec<ScoredToken>,
}

/// A token of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ScoredToken {
    /// Where it starts, in characters of the text.
    pub(crate) offset: usize,
    /// Natural; the first has none.
    pub(crate) logprob: Option<f64>,
}

impl Client {
    /// Finds the server's model where none is named.
    pub(crate) async fn connect(
        url: &str,
        api_key: Option<&str>,
        model: Option<&str>,
        request_timeout: Duration,
    ) -> Result<Self> {
        let base = parse_base(url)?;
        let http = http_client(&base, api_key, request_timeout)?;
        let mut client = Self { http, base, model: model.unwrap_or_default().to_owned() };
        if model.is_none() {
            client.model = client.only_model().await?;
        }
        Ok(client)
    }

    /// Whether the server is on this machine, as far as the URL tells.
    pub(crate) fn is_local(&self) -> bool {
        self.base.host_str().is_some_and(|host| matches!(host, "127.0.0.1" | "localhost" | "[::1]"))
    }

    async fn only_model(&self) -> Result<String> {
        let url = self.join("v1/models");
        let reply = self.http.get(url.clone()).send().await.map_err(|error| unreachable(&url, &error))?;
        let list: Value = read_json(&url, accepted(&url, reply).await?).await?;
        let entries = list["data"].as_array().cloned().unwrap_or_default();
        let mut names: Vec<String> =
            entries.iter().filter_map(|entry| Some(entry["id"].as_str()?.to_owned())).collect();
        match names.len() {
            1 => Ok(names.remove(0)),
            _ => Err(EvalError::ModelChoice { url: url.to_string(), names }),
        }
    }

    /// The text of `/metrics`, if there is one.
    pub(crate) async fn metrics(&self) -> Option<String> {
        let reply = self.http.get(self.join("metrics")).send().await.ok()?;
        if reply.status().is_success() { reply.text().await.ok() } else { None }
    }

    /// Streams an answer. `body` says all but the model and the streaming.
    pub(crate) async fn generate(&self, path: &str, mut body: Value) -> Result<Reply> {
        let url = self.join(path);
        body["model"] = json!(self.model);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let sent = Instant::now();
        let mut response = accepted(&url, self.post(&url, &body).await?).await?;
        let (mut reply, mut lines) = (Reply::default(), Lines::default());
        while let Some(bytes) = response.chunk().await.map_err(|error| unreachable(&url, &error))? {
            if !lines.push(&bytes) {
                return Err(wrong(&url, format!("an answer of more than {MAX_REPLY} bytes")));
            }
            while let Some(line) = lines.next() {
                let Some(data) = line.strip_prefix("data:") else { continue };
                if data.trim() == "[DONE]" {
                    reply.took = sent.elapsed();
                    return Ok(reply);
                }
                let event: Value = serde_json::from_str(data).map_err(|error| wrong(&url, error.to_string()))?;
                if let Some(error) = event.get("error") {
                    return Err(wrong(&url, message_of(error)));
                }
                reply.take(&event, sent);
            }
        }
        Err(wrong(&url, "the stream ended before [DONE]".to_owned()))
    }

    /// Scores every token of `text` but the first.
    pub(crate) async fn score(&self, text: &str) -> Result<ScoredText> {
        let url = self.join("v1/completions");
        let body = |max_tokens: u32| {
            json!({
                "model": self.model, "prompt": text, "max_tokens": max_tokens, "temperature": 0, "echo": true,
                "logprobs": 0,
            })
        };
        let mut response = self.post(&url, &body(0)).await?;
        if response.status().is_client_error() {
            // Some servers must generate something.
            response = self.post(&url, &body(1)).await?;
        }
        let reply = match accepted(&url, response).await {
            Err(EvalError::Refused { status, message, .. }) if (400..500).contains(&status) => {
                return Err(EvalError::NoPromptLogprobs { url: self.base.to_string(), why: message });
            }
            other => read_json(&url, other?).await?,
        };
        scored_text(text, &reply).map_err(|why| EvalError::NoPromptLogprobs { url: self.base.to_string(), why })
    }

    async fn post(&self, url: &Url, body: &Value) -> Result<Response> {
        self.http.post(url.clone()).json(body).send().await.map_err(|error| unreachable(url, &error))
    }

    fn join(&self, path: &str) -> Url {
        self.base.join(path).expect("a relative path joins any http URL")
    }
}

impl Reply {
    fn take(&mut self, event: &Value, sent: Instant) {
        let choice = &event["choices"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let content = text(&choice["delta"]["content"]) + &text(&choice["text"]);
        // Two names for one thing; servers that write both write the same.
        let reasoning = match text(&choice["delta"]["reasoning"]) {
            none if none.is_empty() => text(&choice["delta"]["reasoning_content"]),
            reasoning => reasoning,
        };
        if !(content.is_empty() && reasoning.is_empty()) {
            self.first_after.get_or_insert_with(|| sent.elapsed());
        }
        self.text.push_str(&content);
        self.reasoning.push_str(&reasoning);
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        self.output_tokens = event["usage"]["completion_tokens"].as_u64().or(self.output_tokens);
    }
}

/// Lines out of pieces.
#[derive(Default)]
struct Lines {
    held: Vec<u8>,
    taken: usize,
    total: usize,
}

impl Lines {
    /// False where it has become too much.
    fn push(&mut self, bytes: &[u8]) -> bool {
        self.held.drain(..self.taken);
        self.taken = 0;
        self.held.extend_from_slice(bytes);
        self.total += bytes.len();
        self.total <= MAX_REPLY
    }

    fn next(&mut self) -> Option<String> {
        let rest = &self.held[self.taken..];
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let line = String::from_utf8_lossy(&rest[..end]).trim_end_matches('\r').to_owned();
        self.taken += end + 1;
        Some(line)
    }
}

/// The prompt's part of a completion with `echo` and `logprobs`.
fn scored_text(text: &str, reply: &Value) -> std::result::Result<ScoredText, String> {
    let choice = &reply["choices"][0];
    let list = |name: &str| {
        let list = choice["logprobs"][name].as_array();
        list.ok_or_else(|| format!("its reply has no `logprobs.{name}`"))
    };
    let (tokens, logprobs, offsets) = (list("tokens")?, list("token_logprobs")?, list("text_offset")?);
    if !choice["text"].as_str().is_some_and(|echoed| echoed.contains(text)) {
        return Err("its reply does not repeat the prompt".to_owned());
    }
    if tokens.len() != logprobs.len() || tokens.len() != offsets.len() {
        return Err("its lists of log probabilities differ in length".to_owned());
    }
    let shift = shift(text, tokens, offsets);
    let length = text.chars().count();
    let mut scored = Vec::with_capacity(tokens.len());
    for (logprob, offset) in logprobs.iter().zip(offsets) {
        let offset = offset.as_u64().ok_or("an offset is no number")? as usize;
        let offset = offset.saturating_sub(shift);
        if offset >= length {
            break;
        }
        let logprob = logprob.as_f64();
        if logprob.is_none() && !scored.is_empty() {
            return Err("a token other than the first has no log probability".to_owned());
        }
        scored.push(ScoredToken { offset, logprob });
    }
    match scored.len() {
        0 | 1 => Err("its log probabilities are not of the prompt".to_owned()),
        _ => Ok(ScoredText { tokens: scored }),
    }
}

/// Some servers count the characters of a first token that does not stand in the text, such as `<s>` or a space.
fn shift(text: &str, tokens: &[Value], offsets: &[Value]) -> usize {
    let first = tokens.first().and_then(Value::as_str).unwrap_or_default();
    let counted = offsets.get(1).and_then(Value::as_u64).unwrap_or(0) as usize;
    let length = first.chars().count();
    if text.starts_with(first) || counted != length {
        return 0;
    }
    let bare = first.trim_start();
    if !bare.is_empty() && text.starts_with(bare) { length - bare.chars().count() } else { length }
}

fn parse_base(text: &str) -> Result<Url> {
    let wrong = |why: String| EvalError::Url { url: text.to_owned(), why };
    let trimmed = text.trim().trim_end_matches('/');
    let root = trimmed.strip_suffix("/v1").unwrap_or(trimmed);
    let url = Url::parse(&format!("{root}/")).map_err(|error| wrong(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || url.query().is_some() {
        return Err(wrong("it must be http:// or https:// and a host, without a query".to_owned()));
    }
    Ok(url)
}

fn http_client(base: &Url, api_key: Option<&str>, timeout: Duration) -> Result<reqwest::Client> {
    // An error means that the program has chosen a provider before us, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if let Some(key) = api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| EvalError::ApiKey)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy();
    if base.scheme() == "http" {
        // A system without CA certificates can still be asked over plain HTTP.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(EvalError::Client)
}

/// The response, if it is one of success.
async fn accepted(url: &Url, response: Response) -> Result<Response> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    let body = response.text().await.unwrap_or_default();
    let message = match serde_json::from_str::<Value>(&body) {
        Ok(json) => message_of(json.get("error").unwrap_or(&json)),
        Err(_) => body.chars().take(MAX_MESSAGE).collect(),
    };
    Err(EvalError::Refused { url: url.to_string(), status, message })
}

fn message_of(error: &Value) -> String {
    let message = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
    message.chars().take(MAX_MESSAGE).collect()
}

async fn read_json(url: &Url, mut response: Response) -> Result<Value> {
    let mut body = Vec::new();
    while let Some(bytes) = response.chunk().await.map_err(|error| unreachable(url, &error))? {
        body.extend_from_slice(&bytes);
        if body.len() > MAX_REPLY {
            return Err(wrong(url, format!("a reply of more than {MAX_REPLY} bytes")));
        }
    }
    serde_json::from_slice(&body).map_err(|error| wrong(url, error.to_string()))
}

fn wrong(url: &Url, why: String) -> EvalError {
    EvalError::Reply { url: url.to_string(), why }
}

/// An error with what caused it; reqwest keeps the interesting part in the causes.
fn unreachable(url: &Url, error: &reqwest::Error) -> EvalError {
    let mut why = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        why = format!("{why}: {inner}");
        cause = inner.source();
    }
    EvalError::Unreachable { url: url.to_string(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(text: &str, tokens: &[&str], logprobs: Value, offsets: &[usize]) -> Value {
        let logprobs = json!({"tokens": tokens, "token_logprobs": logprobs, "text_offset": offsets});
        json!({"choices": [{"text": text, "logprobs": logprobs}]})
    }

    fn offsets(text: &str, reply: &Value) -> Vec<usize> {
        scored_text(text, reply).unwrap().tokens.iter().map(|token| token.offset).collect()
    }

    #[test]
    fn what_was_generated_is_left_out() {
        let reply = completion("a bc", &["a", " b", "c"], json!([null, -1.0, -2.0]), &[0, 1, 3]);
        assert_eq!(offsets("a b", &reply), [0, 1]);
    }

    #[test]
    fn control_tokens_take_no_place() {
        let ours = completion("a b", &["<s>", "a", " b"], json!([null, -1, -1]), &[0, 0, 1]);
        assert_eq!(offsets("a b", &ours), [0, 0, 1]);
        let shifted = completion("a b", &["<s>", "a", " b"], json!([null, -1, -1]), &[0, 3, 4]);
        assert_eq!(offsets("a b", &shifted), [0, 0, 1]);
        let spaced = completion("a b", &[" a", " b"], json!([null, -1]), &[0, 2]);
        assert_eq!(offsets("a b", &spaced), [0, 1]);
    }

    #[test]
    fn replies_that_do_not_score_the_prompt_are_told_apart() {
        for reply in [
            json!({"choices": [{"text": "c", "logprobs": null}]}),
            completion("c", &["c"], json!([-1]), &[0]),
            completion("a b", &["a", " b"], json!([null, null]), &[0, 1]),
            completion("a b", &["a", " b"], json!([null]), &[0, 1]),
            json!({}),
        ] {
            assert!(scored_text("a b", &reply).is_err(), "{reply}");
        }
    }

    #[test]
    fn lines_come_out_of_any_pieces() {
        let mut lines = Lines::default();
        assert!(lines.push(b"data: a\r\nda"));
        assert_eq!((lines.next().as_deref(), lines.next()), (Some("data: a"), None));
        assert!(lines.push(b"ta: b\n\n"));
        assert_eq!((lines.next().as_deref(), lines.next().as_deref()), (Some("data: b"), Some("")));
        assert!(!lines.push(&vec![b'x'; MAX_REPLY]));
    }

    #[test]
    fn urls() {
        assert_eq!(parse_base("http://h:1/v1/").unwrap().as_str(), "http://h:1/");
        assert!(parse_base("h:1").is_err() && parse_base("http://h?q=1").is_err());
    }
}
