//! Fields that clients are known to send and that nothing here honours yet. One that would change the response is
//! refused by name; one that asks for what happens anyway is let be.

use plimsoll_api::{ChatRequest, CompletionRequest, SharedFields};
use serde_json::Value;

use crate::error::ApiError;

type Field<'a> = (&'static str, &'a Option<Value>);

/// Refuses what a chat request asks for in vain.
pub(crate) fn check_chat(request: &ChatRequest) -> Result<(), ApiError> {
    let fields: [Field<'_>; 9] = [
        ("functions", &request.functions),
        ("chat_template", &request.chat_template),
        ("documents", &request.documents),
        ("mm_processor_kwargs", &request.mm_processor_kwargs),
        ("media_io_kwargs", &request.media_io_kwargs),
        ("audio", &request.audio),
        ("prediction", &request.prediction),
        ("web_search_options", &request.web_search_options),
        ("thinking_token_budget", &request.thinking_token_budget),
    ];
    refuse_unless_off(&fields)?;
    let is_no_tool = |choice: &Value| choice == "none" || choice == "auto";
    refuse_unless("function_call", &request.function_call, is_no_tool)?;
    refuse_unless("modalities", &request.modalities, |modalities| *modalities == serde_json::json!(["text"]))
}

/// Refuses what a completion request asks for in vain.
pub(crate) fn check_completion(request: &CompletionRequest) -> Result<(), ApiError> {
    refuse_unless_off(&[("suffix", &request.suffix), ("prompt_embeds", &request.prompt_embeds)])
}

/// Refuses what any request asks for in vain.
pub(crate) fn check_shared(fields: &SharedFields) -> Result<(), ApiError> {
    refuse_unless_off(&[
        ("structured_outputs", &fields.structured_outputs),
        ("guided_json", &fields.guided_json),
        ("guided_regex", &fields.guided_regex),
        ("guided_choice", &fields.guided_choice),
        ("guided_grammar", &fields.guided_grammar),
        ("guided_decoding_backend", &fields.guided_decoding_backend),
        ("guided_whitespace_pattern", &fields.guided_whitespace_pattern),
        ("structural_tag", &fields.structural_tag),
        ("truncate_prompt_tokens", &fields.truncate_prompt_tokens),
        ("bad_words", &fields.bad_words),
        ("use_beam_search", &fields.use_beam_search),
        ("logits_processors", &fields.logits_processors),
        ("return_tokens_as_token_ids", &fields.return_tokens_as_token_ids),
        ("return_token_ids", &fields.return_token_ids),
        ("cache_salt", &fields.cache_salt),
        ("kv_transfer_params", &fields.kv_transfer_params),
        ("vllm_xargs", &fields.vllm_xargs),
    ])?;
    refuse_unless("length_penalty", &fields.length_penalty, |penalty| penalty.as_f64() == Some(1.0))?;
    refuse_unless("response_format", &fields.response_format, |format| *format == serde_json::json!({"type": "text"}))?;
    match fields.best_of {
        Some(best_of) if best_of != fields.n.unwrap_or(1) => Err(ApiError::not_served("best_of")),
        _ => Ok(()),
    }
}

fn refuse_unless_off(fields: &[Field<'_>]) -> Result<(), ApiError> {
    fields.iter().try_for_each(|(name, value)| refuse_unless(name, value, is_off))
}

fn refuse_unless(name: &str, value: &Option<Value>, is_harmless: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
    match value {
        Some(value) if !is_harmless(value) => Err(ApiError::not_served(name)),
        _ => Ok(()),
    }
}

/// Values by which clients say that they do not want a thing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(wanted) => !wanted,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The field that a body is refused for.
    fn refused(body: &str) -> Option<String> {
        let mut request: ChatRequest = serde_json::from_str(body).unwrap();
        let checked = check_chat(&request).and_then(|()| check_shared(&request.take_shared()));
        match checked {
            Ok(()) => None,
            Err(ApiError::Invalid { param, .. }) => param,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_changes_nothing_is_let_be() {
        for body in [
            r#"{"functions": [], "function_call": "none", "response_format": {"type": "text"}}"#,
            r#"{"user": "u", "metadata": {"a": 1}, "store": true, "service_tier": "auto", "verbosity": "low"}"#,
            r#"{"best_of": 2, "n": 2, "use_beam_search": false, "length_penalty": 1.0, "bad_words": []}"#,
            r#"{"modalities": ["text"]}"#,
        ] {
            assert_eq!(refused(body), None, "{body}");
        }
    }

    #[test]
    fn what_would_change_the_response_is_refused_by_name() {
        for (body, field) in [
            (r#"{"functions": [{"name": "f"}]}"#, "functions"),
            (r#"{"function_call": {"name": "f"}}"#, "function_call"),
            (r#"{"response_format": {"type": "json_object"}}"#, "response_format"),
            (r#"{"guided_regex": "a+"}"#, "guided_regex"),
            (r#"{"best_of": 3}"#, "best_of"),
            (r#"{"thinking_token_budget": 5}"#, "thinking_token_budget"),
            (r#"{"truncate_prompt_tokens": 5}"#, "truncate_prompt_tokens"),
        ] {
            assert_eq!(refused(body).as_deref(), Some(field), "{body}");
        }
    }
}
