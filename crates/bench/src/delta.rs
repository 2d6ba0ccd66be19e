//! What one `data` payload of a completion stream says: how much text, whether the end, usage, or a fault.
//!
//! Reads the chunks of `/v1/chat/completions` and `/v1/completions`, with the spellings that servers differ in. This is
//! the hot path, so text is measured, not kept: nothing is allocated for an ordinary chunk.

use std::fmt;

use plimsoll_endpoint::{fault_message, shorten};
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::Value;

/// No reply has so many tokens: a count beyond is cut to it, so that the sum of all can be formed.
const MOST_TOKENS: u64 = 1 << 32;

/// How the model ended, as far as the counting of tokens needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// An end-of-sequence token, which usage counts and no delta carries, or a stop string.
    Stop,
    Length,
    Other,
}

/// Token counts as the server gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) reasoning_tokens: u64,
}

/// The sum of what one chunk's choices say. Lengths are in bytes of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) content: usize,
    /// Reasoning and tool calls: output the user waits for, but not the answer's text.
    pub(crate) other: usize,
    pub(crate) finish: Option<Finish>,
    pub(crate) usage: Option<Usage>,
    pub(crate) fault: Option<String>,
}

/// Reads one payload. `Err` is the reason it is no chunk.
pub(crate) fn read_delta(payload: &[u8]) -> Result<Delta, String> {
    let chunk: Chunk = serde_json::from_slice(payload)
        .map_err(|error| format!("{error}: {}", shorten(&String::from_utf8_lossy(payload))))?;
    let fault = match chunk.error {
        Some(error) => Some(fault_message(&error)),
        None if chunk.object.0 => Some(fault_message(&chunk.message.unwrap_or(Value::Null))),
        None => None,
    };
    let usage = chunk.usage.and_then(WireUsage::complete);
    Ok(Delta { content: chunk.choices.content, other: chunk.choices.other, finish: chunk.choices.finish, usage, fault })
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Choices,
    #[serde(default)]
    usage: Option<WireUsage>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    object: IsError,
    #[serde(default)]
    message: Option<Value>,
}

#[derive(Deserialize)]
struct WireUsage {
    #[serde(default)]
    prompt_tokens: Option<u64>,
    #[serde(default)]
    completion_tokens: Option<u64>,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(default)]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    #[serde(default)]
    reasoning_tokens: Option<u64>,
}

impl WireUsage {
    /// None if the server left out one of the two counts that matter.
    fn complete(self) -> Option<Usage> {
        let cached = self.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let reasoning = self.completion_tokens_details.and_then(|details| details.reasoning_tokens);
        Some(Usage {
            prompt_tokens: self.prompt_tokens?.min(MOST_TOKENS),
            completion_tokens: self.completion_tokens?.min(MOST_TOKENS),
            cached_tokens: cached.unwrap_or(0).min(MOST_TOKENS),
            reasoning_tokens: reasoning.unwrap_or(0).min(MOST_TOKENS),
        })
    }
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Message>,
    #[serde(default)]
    text: Length,
    #[serde(default)]
    finish_reason: FinishField,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    content: Length,
    refusal: Length,
    reasoning: Length,
    reasoning_content: Length,
    tool_calls: Option<ToolCalls>,
}

/// All of a chunk's choices, added up.
#[derive(Default)]
struct Choices {
    content: usize,
    other: usize,
    finish: Option<Finish>,
}

impl Choices {
    fn add(&mut self, choice: Choice) {
        let message = choice.delta.unwrap_or_default();
        self.content += choice.text.0 + message.content.0 + message.refusal.0;
        // A server that sends both spellings of reasoning sends the same text twice.
        let reasoning = message.reasoning.0.max(message.reasoning_content.0);
        self.other += reasoning + message.tool_calls.map_or(0, |calls| calls.0);
        self.finish = choice.finish_reason.0.or(self.finish);
    }
}

impl<'de> Deserialize<'de> for Choices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fold { sum: Choices::default(), add: Choices::add })
    }
}

/// The bytes of name and arguments in a `tool_calls` list.
struct ToolCalls(usize);

#[derive(Deserialize)]
struct ToolCall {
    #[serde(default)]
    function: Option<FunctionCall>,
}

#[derive(Deserialize)]
struct FunctionCall {
    #[serde(default)]
    name: Length,
    #[serde(default)]
    arguments: Length,
}

impl ToolCalls {
    fn add(&mut self, call: ToolCall) {
        self.0 += call.function.map_or(0, |function| function.name.0 + function.arguments.0);
    }
}

impl<'de> Deserialize<'de> for ToolCalls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Fold { sum: ToolCalls(0), add: ToolCalls::add })
    }
}

/// Folds a JSON array (or null) into a sum without building a list.
struct Fold<S, T> {
    sum: S,
    add: fn(&mut S, T),
}

impl<'de, S, T: Deserialize<'de>> Visitor<'de> for Fold<S, T> {
    type Value = S;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list or null")
    }

    fn visit_unit<E: de::Error>(self) -> Result<S, E> {
        Ok(self.sum)
    }

    fn visit_seq<L: SeqAccess<'de>>(mut self, mut list: L) -> Result<S, L::Error> {
        while let Some(item) = list.next_element()? {
            (self.add)(&mut self.sum, item);
        }
        Ok(self.sum)
    }
}

/// The length of a string, of the text parts of a list, or 0 for null. Anything else that is there counts as output
/// too, by one.
#[derive(Default)]
struct Length(usize);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LengthVisitor).map(Length)
    }
}

struct LengthVisitor;

impl<'de> Visitor<'de> for LengthVisitor {
    type Value = usize;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string, a list of parts or null")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<usize, E> {
        Ok(text.len())
    }

    fn visit_unit<E: de::Error>(self) -> Result<usize, E> {
        Ok(0)
    }

    fn visit_seq<L: SeqAccess<'de>>(self, mut list: L) -> Result<usize, L::Error> {
        let mut parts = 0;
        while list.next_element::<IgnoredAny>()?.is_some() {
            parts += 1;
        }
        Ok(parts)
    }

    fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<usize, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(1)
    }
}

#[derive(Default)]
struct FinishField(Option<Finish>);

impl<'de> Deserialize<'de> for FinishField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reason;
        impl Visitor<'_> for Reason {
            type Value = Option<Finish>;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a finish reason or null")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Option<Finish>, E> {
                Ok(None)
            }

            fn visit_str<E: de::Error>(self, reason: &str) -> Result<Option<Finish>, E> {
                Ok(match reason {
                    "" => None,
                    "stop" | "eos" | "eos_token" => Some(Finish::Stop),
                    "length" => Some(Finish::Length),
                    _ => Some(Finish::Other),
                })
            }
        }
        deserializer.deserialize_any(Reason).map(FinishField)
    }
}

/// Whether the `object` field is "error", as in the faults of older vLLM servers.
#[derive(Default)]
struct IsError(bool);

impl<'de> Deserialize<'de> for IsError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl Visitor<'_> for Object {
            type Value = bool;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object's type or null")
            }

            fn visit_unit<E: de::Error>(self) -> Result<bool, E> {
                Ok(false)
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<bool, E> {
                Ok(name == "error")
            }
        }
        deserializer.deserialize_any(Object).map(IsError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_that_no_reply_has_are_cut() {
        let most = u64::MAX;
        let payload = format!(
            r#"{{"choices":[],"usage":{{"prompt_tokens":{most},"completion_tokens":{most},
            "prompt_tokens_details":{{"cached_tokens":{most}}},"completion_tokens_details":{{"reasoning_tokens":7}}}}}}"#
        );
        let usage = read_delta(payload.as_bytes()).expect("a chunk").usage.expect("usage");
        let cut = Usage {
            prompt_tokens: MOST_TOKENS,
            completion_tokens: MOST_TOKENS,
            cached_tokens: MOST_TOKENS,
            reasoning_tokens: 7,
        };
        assert_eq!(usage, cut);
    }

    fn read(payload: &str) -> Delta {
        read_delta(payload.as_bytes()).expect("a chunk")
    }

    #[test]
    fn a_role_only_chunk_carries_no_text() {
        for content in ["null", "\"\""] {
            let chunk = format!(r#"{{"choices":[{{"index":0,"delta":{{"role":"assistant","content":{content}}}}}]}}"#);
            assert_eq!(read(&chunk), Delta::default());
        }
    }

    #[test]
    fn every_kind_of_output_counts() {
        let cases = [
            (r#"{"choices":[{"delta":{"content":"h\u00e9\n"}}]}"#, 4, 0),
            (r#"{"choices":[{"text":"abc","index":0}]}"#, 3, 0),
            (r#"{"choices":[{"delta":{"reasoning":"hm"}}]}"#, 0, 2),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#, 0, 2),
            (r#"{"choices":[{"delta":{"reasoning_content":"hm","reasoning":"hm"}}]}"#, 0, 2),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}}]}"#, 0, 2),
            (r#"{"choices":[{"delta":{"tool_calls":[]}}]}"#, 0, 0),
            (r#"{"choices":[]}"#, 0, 0),
            (r#"{"choices":null}"#, 0, 0),
        ];
        for (chunk, content, other) in cases {
            let delta = read(chunk);
            assert_eq!((delta.content, delta.other), (content, other), "{chunk}");
        }
    }

    #[test]
    fn finish_and_usage() {
        let delta = read(
            r#"{"choices":[{"delta":{},"finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":7,
            "total_tokens":12,"prompt_tokens_details":{"cached_tokens":3},"completion_tokens_details":null}}"#,
        );
        assert_eq!(delta.finish, Some(Finish::Length));
        let usage = Usage { prompt_tokens: 5, completion_tokens: 7, cached_tokens: 3, reasoning_tokens: 0 };
        assert_eq!(delta.usage, Some(usage));
        assert_eq!(read(r#"{"choices":[{"finish_reason":"tool_calls"}],"usage":null}"#).finish, Some(Finish::Other));
        assert_eq!(read(r#"{"choices":[],"usage":{"prompt_tokens":5}}"#).usage, None);
    }

    #[test]
    fn faults_in_every_dress() {
        for (chunk, message) in [
            (r#"{"error":{"message":"boom","code":500}}"#, "boom"),
            (r#"{"error":"boom"}"#, "boom"),
            (r#"{"object":"error","message":"boom","code":400}"#, "boom"),
            (r#"{"error":{"code":7}}"#, r#"{"code":7}"#),
        ] {
            assert_eq!(read(chunk).fault.as_deref(), Some(message), "{chunk}");
        }
        assert_eq!(read(r#"{"error":null,"choices":[]}"#).fault, None);
    }

    #[test]
    fn what_our_own_server_writes_is_read() {
        let end = plimsoll_api::ChatChunk {
            id: "chatcmpl-1".into(),
            object: "chat.completion.chunk".into(),
            created: 7,
            model: "m".into(),
            choices: vec![plimsoll_api::ChatChunkChoice {
                index: 0,
                delta: plimsoll_api::Delta { content: Some("zwölf".into()), ..Default::default() },
                logprobs: None,
                finish_reason: Some(plimsoll_api::FinishReason::Length),
            }],
            usage: Some(plimsoll_api::Usage {
                prompt_tokens: 3,
                completion_tokens: 4,
                total_tokens: 7,
                prompt_tokens_details: Some(plimsoll_api::PromptTokensDetails { cached_tokens: 2 }),
                completion_tokens_details: None,
            }),
        };
        let usage = Usage { prompt_tokens: 3, completion_tokens: 4, cached_tokens: 2, reasoning_tokens: 0 };
        let expected = Delta { content: 6, other: 0, finish: Some(Finish::Length), usage: Some(usage), fault: None };
        assert_eq!(read(&serde_json::to_string(&end).expect("JSON")), expected);
    }

    #[test]
    fn what_is_no_chunk_says_why() {
        for payload in ["", "hello", "[1]", r#"{"choices":[{"delta":{"content":3}}]}"#, r#"{"choices":[{"delta":"#] {
            assert!(read_delta(payload.as_bytes()).is_err(), "{payload}");
        }
        let long = "x".repeat(10_000);
        assert!(read_delta(long.as_bytes()).expect_err("no JSON").len() < 500);
    }
}
