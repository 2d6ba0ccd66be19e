//! HTTP clients, and replies that are no streams.

use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Response, Url};
use serde_json::Value;

use crate::error::{EndpointError, Result};

/// How much of an error reply is read, in bytes.
const MAX_REFUSAL: usize = 64 << 10;
/// The longest message that is kept of what a server or a system says.
const MAX_MESSAGE_CHARS: usize = 300;

/// Whether connections are used for more than one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Always,
    Never,
}

/// A client for the server at `url`, over http or https. A proxy set in the environment is not used: its time would be
/// taken for the server's, and its answers as well.
///
/// # Errors
/// A key that cannot be sent, or for https no CA certificates.
pub fn http_client(url: &Url, api_key: Option<&str>, connect: Duration, reuse: Reuse) -> Result<reqwest::Client> {
    // An error means that the program has chosen a provider before us, which serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream, application/json"));
    if let Some(key) = api_key {
        let mut value = HeaderValue::from_str(&format!("Bearer {key}")).map_err(|_| EndpointError::ApiKey)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(connect)
        .pool_max_idle_per_host(if reuse == Reuse::Always { usize::MAX } else { 0 })
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .no_proxy();
    if url.scheme() == "http" {
        // Without this a system that has no CA certificates could not even be used over plain HTTP.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(EndpointError::Client)
}

/// The whole body of a reply.
///
/// # Errors
/// In words: a connection that breaks, or more than `most` bytes.
pub async fn read_limited(mut response: Response, most: usize) -> std::result::Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| with_causes(&error))? {
        body.extend_from_slice(&piece);
        if body.len() > most {
            return Err(format!("it answers with more than {most} bytes"));
        }
    }
    Ok(body)
}

/// What a reply that refuses a request says, as far as it can be read.
pub async fn refusal(mut response: Response) -> String {
    let mut body = Vec::new();
    while body.len() < MAX_REFUSAL
        && let Ok(Some(piece)) = response.chunk().await
    {
        body.extend_from_slice(&piece);
    }
    match serde_json::from_slice::<Value>(&body) {
        Ok(json) => fault_message(json.get("error").unwrap_or(&json)),
        Err(_) => shorten(&String::from_utf8_lossy(&body)),
    }
}

/// The text of an `error` value, whatever its shape.
pub fn fault_message(error: &Value) -> String {
    let text = error.get("message").and_then(Value::as_str).or(error.as_str());
    shorten(&text.map_or_else(|| error.to_string(), str::to_owned))
}

/// An error with what caused it: HTTP clients keep the interesting part in the causes.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    shorten(&text)
}

/// The first few hundred characters of a message.
pub fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn faults_of_every_shape_have_a_message() {
        for (error, message) in [
            (json!({"message": "boom", "code": 500}), "boom"),
            (json!("boom"), "boom"),
            (json!({"code": 7}), r#"{"code":7}"#),
        ] {
            assert_eq!(fault_message(&error), message);
        }
        let long = "ü".repeat(10_000);
        assert_eq!(shorten(&long).chars().count(), MAX_MESSAGE_CHARS + 3);
    }

    #[test]
    fn a_key_that_is_no_header_is_refused() {
        let url = Url::parse("http://h").expect("a URL");
        let client = |key| http_client(&url, Some(key), Duration::from_secs(1), Reuse::Always);
        assert!(client("sk-1").is_ok());
        assert!(matches!(client("sk\n1"), Err(EndpointError::ApiKey)));
    }
}
