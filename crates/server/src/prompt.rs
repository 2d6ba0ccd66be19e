//! From a request's text to token ids: rendering and tokenizing, which take real time and so happen on threads of
//! their own, few at a time.

use std::sync::Arc;

use plimsoll_api::{Message, Prompt};
use plimsoll_core::TokenId;
use plimsoll_text::{ChatInput, Opening, SpecialTokens, TextError, Tokenizer};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::messages::for_template;
use crate::params::check_token;
use crate::state::unix_seconds;
use crate::{ServedModel, ServerState};

/// Prompts in one request at most.
const MAX_PROMPTS: usize = 256;
/// How long a request may ask the model to think; templates know some of these.
const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];

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
    pub(crate) reasoning_effort: Option<String>,
    /// The tools that may be called, as templates know them.
    pub(crate) tools: Option<Value>,
    /// The function that the reply must call.
    pub(crate) forced_call: Option<String>,
}

/// A conversation's prompt, and where in its reply the model begins.
pub(crate) struct EncodedChat {
    pub(crate) ids: Vec<TokenId>,
    pub(crate) opening: Opening,
}

/// Runs `work` on a thread that may block, once one of the places for it is free.
pub(crate) async fn on_text_thread<T: Send + 'static>(
    state: &ServerState,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let place = Arc::clone(&state.text_places).acquire_owned().await.expect("never closed");
    // The place is the work's, which goes on when the client goes away.
    let work = move || {
        let _place = place;
        work()
    };
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
) -> Result<EncodedChat, ApiError> {
    let continues = chat.continue_final_message.unwrap_or(false);
    if continues && chat.add_generation_prompt == Some(true) {
        let message = "cannot go with `add_generation_prompt`: the reply either goes on or begins";
        return Err(ApiError::invalid("continue_final_message", message));
    }
    let begins = chat.add_generation_prompt.unwrap_or(!continues);
    if chat.forced_call.is_some() && !begins {
        return Err(ApiError::invalid("tool_choice", "can force a call only where a reply begins"));
    }
    let messages = for_template(&chat.messages)?;
    let extra = template_variables(chat.template_kwargs, chat.reasoning_effort)?;
    let model = Arc::clone(model);
    on_text_thread(state, move || {
        let input = ChatInput {
            messages: &messages,
            tools: chat.tools.as_ref(),
            add_generation_prompt: begins,
            continue_final_message: continues,
            extra: &extra,
            unix_seconds: unix_seconds() as i64,
        };
        let mut rendered = model.tokenizer.render_chat(&input).map_err(of_chat)?;
        let opening = if continues { Opening::Content } else { model.dialect.opening(&rendered) };
        if let Some(name) = &chat.forced_call {
            model.tokenizer.force_call(&mut rendered, model.dialect.tools, name);
        }
        let ids = model.tokenizer.encode_chat(&rendered).map_err(of_chat)?;
        Ok(EncodedChat { ids, opening })
    })
    .await
}

/// `reasoning_effort` is the template variable of that name. Hybrid models know "not at all" by another.
fn template_variables(
    kwargs: Option<Map<String, Value>>,
    effort: Option<String>,
) -> Result<Map<String, Value>, ApiError> {
    let mut variables = kwargs.unwrap_or_default();
    let Some(effort) = effort else { return Ok(variables) };
    if !EFFORTS.contains(&effort.as_str()) {
        return Err(ApiError::invalid("reasoning_effort", format!("must be one of {}", EFFORTS.join(", "))));
    }
    if effort == "none" {
        variables.entry("enable_thinking").or_insert(json!(false));
    }
    variables.entry("reasoning_effort").or_insert(json!(effort));
    Ok(variables)
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

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::ServerConfig;

    #[tokio::test]
    async fn work_keeps_its_place_when_its_client_goes_away() {
        let state = ServerState::new(ServerConfig { text_threads: 1, ..ServerConfig::default() });
        let (begin, begun) = oneshot::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let work = move || {
            begin.send(()).ok();
            ended.recv().ok();
            Ok(())
        };
        let client = tokio::spawn({
            let state = state.clone();
            async move { on_text_thread(&state, work).await }
        });
        begun.await.unwrap();
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        assert_eq!(state.text_places.available_permits(), 0);
        end.send(()).unwrap();
        assert!(on_text_thread(&state, || Ok(())).await.is_ok());
    }
}
