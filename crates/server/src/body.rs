//! A request's body: read within bounds of size and time, and parsed so that every complaint names its field.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http_body_util::BodyExt;
use plimsoll_api::{KeyError, field_names, top_level_keys};
use serde::de::DeserializeOwned;

use crate::ServerConfig;
use crate::error::ApiError;

/// The length that a request says its body has; 0 where it does not say.
pub(crate) fn stated_length(headers: &HeaderMap) -> u64 {
    headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// Reads and parses a JSON body.
pub(crate) async fn read_json<T: DeserializeOwned>(request: Request, config: &ServerConfig) -> Result<T, ApiError> {
    let is_json = request.headers().get(CONTENT_TYPE).is_some_and(|kind| is_json(kind.as_bytes()));
    if !is_json {
        return Err(ApiError::NotJson);
    }
    let stated = stated_length(request.headers());
    if stated > config.max_body as u64 {
        return Err(ApiError::BodyTooLarge { limit: config.max_body });
    }
    let bytes = read_bounded(request.into_body(), stated as usize, config.max_body, config.body_timeout).await?;
    parse(&bytes)
}

/// `application/json` or `application/something+json`, with any parameters.
fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/json")
        || (essence.len() >= 5 && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json"))
}

/// Copies every piece into one buffer: however small the pieces are, they cost their own length and no more.
async fn read_bounded(mut body: Body, stated: usize, limit: usize, timeout: Duration) -> Result<Vec<u8>, ApiError> {
    let read_all = async {
        let mut bytes = Vec::with_capacity(stated);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| broken_off())?;
            if let Some(data) = frame.data_ref() {
                if bytes.len() + data.len() > limit {
                    return Err(ApiError::BodyTooLarge { limit });
                }
                bytes.extend_from_slice(data);
            }
        }
        Ok(bytes)
    };
    tokio::time::timeout(timeout, read_all).await.unwrap_or(Err(ApiError::SlowBody(timeout)))
}

fn broken_off() -> ApiError {
    ApiError::Invalid { message: "the request's body broke off".to_owned(), param: None, code: None }
}

/// Parses a body whose every field is known.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let keys = top_level_keys(bytes).map_err(|error| malformed(&error))?;
    let known = field_names::<T>();
    if let Some(unknown) = keys.iter().find(|key| !known.contains(&key.as_str())) {
        return Err(unknown_field(unknown, known));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        // A key that is no key of its map is written as `?`.
        let path = shortened(error.path().to_string().trim_end_matches(".?").to_owned());
        let message = shortened(without_position(error.inner()));
        match path.as_str() {
            "." => ApiError::Invalid { message, param: None, code: None },
            path => ApiError::invalid(path, format!("cannot be read: {message}")),
        }
    })
}

fn malformed(error: &KeyError) -> ApiError {
    ApiError::Invalid { message: error.to_string(), param: None, code: None }
}

/// serde_json's message without `at line 1 column 23`, which helps nobody in a body of one line.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.rsplit_once(" at line ").map_or(message.clone(), |(message, _)| message.to_owned())
}

/// What clients wrote is quoted to them; nobody needs megabytes of it.
fn shortened(text: String) -> String {
    const LONGEST: usize = 400;
    if text.len() <= LONGEST { text } else { text.chars().take(LONGEST).chain("...".chars()).collect() }
}

fn unknown_field(name: &str, known: &[&str]) -> ApiError {
    let shown: String = name.chars().take(64).collect();
    let nearest = known.iter().map(|field| (edit_distance(&shown, field), field)).min();
    let hint = match nearest {
        Some((distance, field)) if distance <= 1 + field.len() / 4 => format!(". Did you mean `{field}`?"),
        _ => String::new(),
    };
    ApiError::Invalid {
        message: format!("Unrecognized request argument supplied: `{shown}`{hint}"),
        param: Some(shown),
        code: Some("unknown_field"),
    }
}

/// Insertions, deletions and substitutions between two short names (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_api::ChatRequest;

    fn complaint(body: &str) -> (Option<String>, String) {
        match parse::<ChatRequest>(body.as_bytes()) {
            Err(ApiError::Invalid { message, param, .. }) => (param, message),
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn complaints_name_the_field() {
        let cases = [
            (r#"{"max_token": 5}"#, Some("max_token"), "Did you mean `max_tokens`?"),
            (r#"{"zzzzzzzzzzzz": 5}"#, Some("zzzzzzzzzzzz"), "Unrecognized request argument"),
            (r#"{"max_tokens": -5}"#, Some("max_tokens"), "invalid value: integer `-5`, expected u32"),
            (r#"{"temperature": "hot"}"#, Some("temperature"), "invalid type: string \"hot\", expected f32"),
            (r#"{"messages": [{"role": "user", "content": 5}]}"#, Some("messages[0].content"), "must be a string"),
            (r#"{"messages": [{"rôle": "user"}]}"#, Some("messages[0].rôle"), "unknown field `rôle`"),
            (r#"{"logit_bias": {"x": 1}}"#, Some("logit_bias"), "expected key to be a number"),
            (r#"{"n": 1, "n": 2}"#, None, "duplicate field `n`"),
            (r#"{"temperature": NaN}"#, None, "not valid JSON"),
            (r#"{"temperature": 1e999}"#, Some("temperature"), "number out of range"),
            ("[]", None, "must be a JSON object"),
            ("", None, "not valid JSON"),
        ];
        for (body, expected_param, expected_message) in cases {
            let (param, message) = complaint(body);
            assert_eq!(param.as_deref(), expected_param, "{body}: {message}");
            assert!(message.contains(expected_message), "{body}: {message}");
        }
    }

    #[test]
    fn json_of_any_kind_is_json() {
        for kind in ["application/json", "Application/JSON; charset=utf-8", "application/problem+json"] {
            assert!(is_json(kind.as_bytes()), "{kind}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "", "json"] {
            assert!(!is_json(kind.as_bytes()), "{kind}");
        }
    }

    #[test]
    fn names_that_are_near_are_found() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("stop", "stop"), 0);
    }
}
