//! Whether the server's token counts can be believed: one reply is read in full before the run, and its text counted by
//! the server's own tokenizer.

use bytes::Bytes;
use plimsoll_endpoint::{SseEvent, SseParser};
use reqwest::Url;
use serde_json::Value;

use crate::endpoint::{Asking, RemoteTokenizer};
use crate::findings::{Finding, FindingKind};

/// No reply to a benchmark's request is longer.
const LARGEST_REPLY: usize = 4 << 20;
/// A text that was generated is not always cut into the tokens it was generated in, and a stop token has no text: counts
/// that differ by less than this factor and these tokens are alike.
const ALIKE_FACTOR: f64 = 1.5;
const ALIKE_TOKENS: f64 = 8.0;

/// A reply's text, and the tokens that the server says it has.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reply {
    text: String,
    completion_tokens: Option<u64>,
}

impl Reply {
    fn add(&mut self, payload: &[u8]) {
        let Ok(chunk) = serde_json::from_slice::<Value>(payload) else { return };
        for choice in chunk.get("choices").and_then(Value::as_array).into_iter().flatten() {
            let delta = choice.get("delta").unwrap_or(choice);
            let part = |name: &str| delta.get(name).and_then(Value::as_str);
            // A server that has both spellings of reasoning sends the same text twice.
            let reasoning = part("reasoning").or(part("reasoning_content"));
            [part("text"), reasoning, part("content")].into_iter().flatten().for_each(|text| self.text.push_str(text));
        }
        let counted = chunk.pointer("/usage/completion_tokens").and_then(Value::as_u64);
        self.completion_tokens = counted.or(self.completion_tokens);
    }
}

/// Sends `body` and compares. None: the counts are alike, or cannot be compared.
pub(crate) async fn check_usage(
    asking: Asking<'_>,
    tokenizer: &RemoteTokenizer<'_>,
    url: Url,
    body: Bytes,
) -> Option<Finding> {
    let mut response = asking.http.post(url).body(body).send().await.ok()?.error_for_status().ok()?;
    let (mut parser, mut reply, mut length) = (SseParser::default(), Reply::default(), 0);
    let add = |event: SseEvent<'_>, reply: &mut Reply| {
        if let SseEvent::Data(payload) = event {
            reply.add(payload);
        }
    };
    while let Some(piece) = response.chunk().await.ok()? {
        length += piece.len();
        if length > LARGEST_REPLY || parser.push(&piece, |event| add(event, &mut reply)).is_err() {
            return None;
        }
    }
    parser.finish(|event| add(event, &mut reply));
    // Bytes that are no text are not what was generated any more.
    if reply.text.is_empty() || reply.text.contains(char::REPLACEMENT_CHARACTER) {
        return None;
    }
    compare(reply.completion_tokens?, tokenizer.count(&reply.text).await?.into())
}

fn compare(said: u64, counted: u64) -> Option<Finding> {
    let (low, high) = (said.min(counted) as f64, said.max(counted) as f64);
    (high > ALIKE_FACTOR * low && high > low + ALIKE_TOKENS).then(|| {
        let text = format!(
            "The server says that a reply has {said} tokens whose text has {counted} by its own tokenizer: its counts, \
             and the rates made from them, are not to be believed."
        );
        Finding::new(FindingKind::UsageWrong, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_text_of_a_reply_is_counted() {
        let mut reply = Reply::default();
        for payload in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"reasoning":"a","reasoning_content":"a"}}]}"#,
            r#"{"choices":[{"delta":{"content":"b"}}]}"#,
            r#"{"choices":[{"text":"c","index":0}]}"#,
            "[DONE]",
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#,
        ] {
            reply.add(payload.as_bytes());
        }
        assert_eq!((reply.text.as_str(), reply.completion_tokens), ("abc", Some(4)));
    }

    #[test]
    fn counts_that_are_far_apart_are_told() {
        for (said, counted) in [(100, 100), (101, 97), (9, 2), (100, 70)] {
            assert_eq!(compare(said, counted), None, "{said} and {counted}");
        }
        for (said, counted) in [(200, 100), (100, 20), (20, 100)] {
            assert!(compare(said, counted).is_some_and(|finding| finding.invalidates()), "{said} and {counted}");
        }
    }
}
