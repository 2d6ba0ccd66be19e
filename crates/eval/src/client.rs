//! What is asked of an OpenAI-compatible server: its model, one streamed answer, the log probabilities of a text.

use std::time::{Duration, Instant};

use plimsoll_endpoint::{
    Base, EndpointError, Reuse, SseEvent, SseParser, fault_message, http_client, only_model, read_limited, refusal,
    shorten, with_causes,
};
use reqwest::{Response, Url};
use serde_json::{Value, json};

use crate::error::{EvalError, Result};

/// The longest reply that is taken, in bytes.
const MAX_REPLY: usize = 32 << 20;
/// For opening a connection, and for each small question.
const PATIENCE: Duration = Duration::from_secs(10);

/// One model of one server.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Base,
    request_timeout: Duration,
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
        let base = Base::parse(url)?;
        let http = http_client(base.root(), api_key, PATIENCE, Reuse::Always)?;
        let model = match model {
            Some(model) => model.to_owned(),
            None => only_model(&http, &base, PATIENCE).await?,
        };
        Ok(Self { http, base, request_timeout, model })
    }

    /// Whether the server is on this machine, as far as the URL tells.
    pub(crate) fn is_local(&self) -> bool {
        self.base.is_local()
    }

    /// The text of `/metrics`, if there is one.
    pub(crate) async fn metrics(&self) -> Option<String> {
        let reply = self.http.get(self.base.join("metrics")).timeout(PATIENCE).send().await.ok()?;
        if reply.status().is_success() { reply.text().await.ok() } else { None }
    }

    /// Streams an answer. `body` says all but the model and the streaming.
    pub(crate) async fn generate(&self, path: &str, mut body: Value) -> Result<Reply> {
        let url = self.base.join(path);
        body["model"] = json!(self.model);
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let sent = Instant::now();
        let mut response = accepted(&url, self.post(&url, &body).await?).await?;
        let (mut reply, mut parser, mut length) = (Reply::default(), SseParser::default(), 0);
        while let Some(bytes) = response.chunk().await.map_err(|error| unreachable(&url, with_causes(&error)))? {
            length += bytes.len();
            if length > MAX_REPLY {
                return Err(wrong(&url, format!("an answer of more than {MAX_REPLY} bytes")));
            }
            let mut taken = Ok(Taken::More);
            let parsed = parser.push(&bytes, |event| {
                if let Ok(Taken::More) = taken {
                    taken = reply.take(event, sent);
                }
            });
            if taken.map_err(|why| wrong(&url, why))? == Taken::Done {
                return Ok(reply);
            }
            parsed.map_err(|_| wrong(&url, "an event of its stream is too long to be one".to_owned()))?;
        }
        // A last event may lack the blank line behind it.
        let mut taken = Ok(Taken::More);
        parser.finish(|event| {
            if let Ok(Taken::More) = taken {
                taken = reply.take(event, sent);
            }
        });
        match taken {
            Ok(Taken::Done) => Ok(reply),
            Ok(Taken::More) => Err(wrong(&url, "the stream ended before [DONE]".to_owned())),
            Err(why) => Err(wrong(&url, format!("the stream ended before [DONE]: {why}"))),
        }
    }

    /// Scores every token of `text` but the first.
    pub(crate) async fn score(&self, text: &str) -> Result<ScoredText> {
        let url = self.base.join("v1/completions");
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
                return Err(EvalError::NoPromptLogprobs { url: self.base.root().to_string(), why: message });
            }
            other => read_json(&url, other?).await?,
        };
        scored_text(text, &reply).map_err(|why| EvalError::NoPromptLogprobs { url: self.base.root().to_string(), why })
    }

    async fn post(&self, url: &Url, body: &Value) -> Result<Response> {
        let request = self.http.post(url.clone()).timeout(self.request_timeout).json(body);
        request.send().await.map_err(|error| unreachable(url, with_causes(&error)))
    }
}

/// How far a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    More,
    Done,
}

impl Reply {
    /// Takes one event of the stream. An error is what is wrong with it, in words.
    fn take(&mut self, event: SseEvent<'_>, sent: Instant) -> std::result::Result<Taken, String> {
        let payload = match event {
            SseEvent::Data(b"[DONE]") => {
                self.took = sent.elapsed();
                return Ok(Taken::Done);
            }
            SseEvent::Data(payload) => payload,
            SseEvent::Error(payload) => return Err(shorten(&String::from_utf8_lossy(payload))),
        };
        let event: Value = serde_json::from_slice(payload).map_err(|error| error.to_string())?;
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            return Err(fault_message(error));
        }
        self.add(&event, sent);
        Ok(Taken::More)
    }

    fn add(&mut self, event: &Value, sent: Instant) {
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

/// The response, if it is one of success.
async fn accepted(url: &Url, response: Response) -> Result<Response> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status().as_u16();
    Err(EvalError::Refused { url: url.to_string(), status, message: refusal(response).await })
}

async fn read_json(url: &Url, response: Response) -> Result<Value> {
    let body = read_limited(response, MAX_REPLY).await.map_err(|why| wrong(url, why))?;
    serde_json::from_slice(&body).map_err(|error| wrong(url, error.to_string()))
}

fn wrong(url: &Url, why: String) -> EvalError {
    EvalError::Reply { url: url.to_string(), why }
}

fn unreachable(url: &Url, why: String) -> EvalError {
    EndpointError::Unreachable { url: url.to_string(), why }.into()
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
    fn a_stream_s_events_make_a_reply() {
        let mut reply = Reply::default();
        let mut take = |payload: &str| reply.take(SseEvent::Data(payload.as_bytes()), Instant::now());
        for payload in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"error":null}"#,
            r#"{"choices":[{"delta":{"reasoning":"hm","reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"completion_tokens":3}}"#,
        ] {
            assert_eq!(take(payload), Ok(Taken::More), "{payload}");
        }
        assert_eq!(take(r#"{"error":{"message":"boom"}}"#), Err("boom".to_owned()));
        assert!(take("oops").is_err());
        assert_eq!(take("[DONE]"), Ok(Taken::Done));
        assert_eq!((reply.text.as_str(), reply.reasoning.as_str(), reply.output_tokens), ("a", "hm", Some(3)));
        assert!(reply.finish.as_deref() == Some("stop") && reply.first_after.is_some());
        assert_eq!(reply.take(SseEvent::Error(b"lost"), Instant::now()), Err("lost".to_owned()));
    }
}
