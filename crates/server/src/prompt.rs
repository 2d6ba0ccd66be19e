//! From a request's text to token ids: rendering and tokenizing, which take real time and so happen on threads of
//! their own, few at a time.

use std::sync::Arc;

use plimsoll_api::{Message, MessageContent, Prompt, Role};
use plimsoll_core::TokenId;
use plimsoll_text::{ChatInput, SpecialTokens, TextError, Tokenizer};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::params::check_token;
use crate::state::unix_seconds;
use crate::{ServedModel, ServerState};

/// Prompts in one request at most.
const MAX_PROMPTS: usize = 256;
/// Messages in one chat at most.
const MAX_MESSAGES: usize = 4096;

/// What a choice continues.
#[derive(Debug)]
pub(crate) struct EncodedPrompt {
    pub(crate) ids: Vec<TokenId>,
    /// Its text, where the request wants it back.
    pub(crate) echo: Option<String>,
}

/// A conversation and how it is to be rendered.
pub(crate) struct Chat {
    pub(crate) messages: Vec<Message>,
    pub(crate) add_generation_prompt: Option<bool>,
    pub(crate) continue_final_message: Option<bool>,
    pub(crate) template_kwargs: Option<Map<String, Value>>,
}

/// Runs `work` on a thread that may block, once one of the places for it is free.
pub(crate) async fn on_text_thread<T: Send + 'static>(
    state: &ServerState,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let _place = state.text_places.acquire().await.expect("never closed");
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(ApiError::Internal("the tokenizer broke one of its own rules")))
}

/// The prompts of a completion request.
pub(crate) async fn encode_prompts(
    state: &ServerState,
    model: &Arc<ServedModel>,
    prompt: Prompt,
    add_special_tokens: bool,
    echo: bool,
) -> Result<Vec<EncodedPrompt>, ApiError> {
    let count = match &prompt {
        Prompt::Text(_) | Prompt::Ids(_) => 1,
        Prompt::Texts(texts) => texts.len(),
        Prompt::IdLists(lists) => lists.len(),
    };
    if count == 0 {
        return Err(ApiError::invalid("prompt", "is an empty list: send at least one prompt"));
    }
    if count > MAX_PROMPTS {
        return Err(ApiError::invalid("prompt", format!("holds {count} prompts; send at most {MAX_PROMPTS} at once")));
    }
    let model = Arc::clone(model);
    on_text_thread(state, move || {
        let from_text = |text| encode_text(&model.tokenizer, text, add_special_tokens, echo);
        let from_ids = |ids| check_ids(&model, ids, echo);
        match prompt {
            Prompt::Text(text) => Ok(vec![from_text(text)?]),
            Prompt::Texts(texts) => texts.into_iter().map(from_text).collect(),
            Prompt::Ids(ids) => Ok(vec![from_ids(ids)?]),
            Prompt::IdLists(lists) => lists.into_iter().map(from_ids).collect(),
        }
    })
    .await
}

/// Control tokens in a raw prompt count: whoever writes one frames the conversation.
fn encode_text(tokenizer: &Tokenizer, text: String, add_bos: bool, echo: bool) -> Result<EncodedPrompt, ApiError> {
    let ids = tokenizer.encode(&text, SpecialTokens::Parse, add_bos)?;
    Ok(EncodedPrompt { ids, echo: echo.then_some(text) })
}

fn check_ids(model: &ServedModel, ids: Vec<TokenId>, echo: bool) -> Result<EncodedPrompt, ApiError> {
    ids.iter().try_for_each(|&id| check_token("prompt", id, model))?;
    let echo = echo.then(|| model.tokenizer.decode(&ids, false));
    Ok(EncodedPrompt { ids, echo })
}

/// The prompt that a conversation makes.
pub(crate) async fn encode_chat(
    state: &ServerState,
    model: &Arc<ServedModel>,
    chat: Chat,
) -> Result<Vec<TokenId>, ApiError> {
    let continues = chat.continue_final_message.unwrap_or(false);
    if continues && chat.add_generation_prompt == Some(true) {
        let message = "cannot go with `add_generation_prompt`: the reply either goes on or begins";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let count = chat.messages.len();
    if count == 0 {
        return Err(ApiError::invalid("messages", "is empty: send at least one message"));
    }
    if count > MAX_MESSAGES {
        return Err(ApiError::invalid("messages", format!("holds {count} messages; send at most {MAX_MESSAGES}")));
    }
    let messages = chat.messages.iter().enumerate().map(|(index, message)| for_template(index, message));
    let messages = Value::Array(messages.collect::<Result<_, _>>()?);
    let model = Arc::clone(model);
    on_text_thread(state, move || {
        let input = ChatInput {
            messages: &messages,
            tools: None,
            add_generation_prompt: chat.add_generation_prompt.unwrap_or(!continues),
            continue_final_message: continues,
            extra: &chat.template_kwargs.unwrap_or_default(),
            unix_seconds: unix_seconds() as i64,
        };
        let rendered = model.tokenizer.chat_template().and_then(|template| template.render(&input));
        let encoded = rendered.and_then(|rendered| model.tokenizer.encode_chat(&rendered));
        encoded.map_err(of_chat)
    })
    .await
}

/// The field that a chat's error is about.
fn of_chat(error: TextError) -> ApiError {
    let about = |param: &str| ApiError::Invalid { message: error.to_string(), param: Some(param.into()), code: None };
    match &error {
        TextError::InvalidChat(text) if text.starts_with("chat_template_kwargs") => about("chat_template_kwargs"),
        TextError::InvalidChat(text) if text.starts_with("continue_final_message") => about("continue_final_message"),
        _ => error.into(),
    }
}

/// A message as templates know it.
fn for_template(index: usize, message: &Message) -> Result<Value, ApiError> {
    let at = |field: &str| format!("messages[{index}].{field}");
    let role = match &message.role {
        Role::System => "system",
        // OpenAI's newer name, which no template knows.
        Role::Developer => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => return Err(ApiError::not_served(format!("messages[{index}].role (tool)"))),
        Role::Other(role) => {
            let role: String = role.chars().take(64).collect();
            let message = format!("is `{role}`; it must be system, developer, user or assistant");
            return Err(ApiError::invalid(at("role"), message));
        }
    };
    let calls = [("tool_calls", &message.tool_calls), ("function_call", &message.function_call)];
    let is_set = |value: &&Value| !value.as_array().is_some_and(Vec::is_empty);
    if let Some((field, _)) = calls.iter().find(|(_, value)| value.as_ref().is_some_and(|value| is_set(&value))) {
        return Err(ApiError::not_served(at(field)));
    }
    if message.tool_call_id.is_some() {
        return Err(ApiError::not_served(at("tool_call_id")));
    }
    let mut fields = Map::new();
    fields.insert("role".to_owned(), json!(role));
    fields.insert("content".to_owned(), content_for_template(index, message.content.as_ref())?);
    if let Some(name) = &message.name {
        fields.insert("name".to_owned(), json!(name));
    }
    // Templates that show thoughts at all look under the older name.
    if let Some(thoughts) = message.reasoning.as_ref().or(message.reasoning_content.as_ref()) {
        fields.insert("reasoning_content".to_owned(), json!(thoughts));
    }
    Ok(Value::Object(fields))
}

fn content_for_template(index: usize, content: Option<&MessageContent>) -> Result<Value, ApiError> {
    let parts = match content {
        None => return Err(ApiError::invalid(format!("messages[{index}].content"), "is missing")),
        Some(MessageContent::Text(text)) => return Ok(json!(text)),
        Some(MessageContent::Parts(parts)) => parts,
    };
    let texts = parts.iter().enumerate().map(|(part, content)| {
        let at = format!("messages[{index}].content[{part}]");
        match (content.kind.as_str(), &content.text) {
            ("text", Some(text)) => Ok(json!({"type": "text", "text": text})),
            ("text", None) => Err(ApiError::invalid(format!("{at}.text"), "is missing")),
            (kind, _) => {
                let kind: String = kind.chars().take(64).collect();
                let message = format!("is of type `{kind}`, which is not served yet: send parts of type `text` only");
                Err(ApiError::Invalid {
                    message: format!("`{at}` {message}"),
                    param: Some(at),
                    code: Some("not_served"),
                })
            }
        }
    });
    texts.collect::<Result<Vec<_>, _>>().map(Value::Array)
}
