//! `POST /tokenize` and `POST /detokenize`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::{Extension, Json};
use plimsoll_api::{DetokenizeRequest, DetokenizeResponse, Prompt, TokenizeRequest, TokenizeResponse};

use crate::ServerState;
use crate::auth::Caller;
use crate::body::read_json;
use crate::call::{Call, until_deadline};
use crate::error::ApiError;
use crate::params::check_token;
use crate::prompt::{Chat, encode_chat, encode_prompts, on_text_thread};
use crate::tools::Tools;
use crate::watch::Entry;

pub(crate) async fn tokenize(
    State(state): State<ServerState>,
    Extension(caller): Extension<Caller>,
    Extension(entry): Extension<Entry>,
    request: Request,
) -> Result<Json<TokenizeResponse>, ApiError> {
    let call = Call::admit(state, caller, entry, &request)?;
    until_deadline(call, async |call| {
        let request: TokenizeRequest = read_json(request, &call.state.config).await?;
        count(&call.state, request).await.map(Json)
    })
    .await
}

async fn count(state: &ServerState, request: TokenizeRequest) -> Result<TokenizeResponse, ApiError> {
    let model = state.model_called(request.model.as_deref())?;
    if request.chat_template.is_some() {
        return Err(ApiError::not_served("chat_template"));
    }
    let tokens = match (request.prompt, request.messages) {
        (Some(text), None) => {
            let add_special = request.add_special_tokens.unwrap_or(true);
            let mut prompts = encode_prompts(state, &model, Prompt::Text(text), add_special, false).await?;
            prompts.pop().map(|prompt| prompt.ids).unwrap_or_default()
        }
        (None, Some(messages)) => {
            if request.add_special_tokens == Some(true) {
                return Err(ApiError::not_served("add_special_tokens"));
            }
            let chat = Chat {
                messages,
                add_generation_prompt: request.add_generation_prompt,
                continue_final_message: request.continue_final_message,
                template_kwargs: request.chat_template_kwargs,
                reasoning_effort: None,
                tools: Tools::new(request.tools.as_deref(), None, model.dialect.tools)?.rendered,
                forced_call: None,
            };
            encode_chat(state, &model, chat).await?.ids
        }
        _ => return Err(ApiError::invalid("prompt", "or `messages` must be there, and not both")),
    };
    let text = |&token: &u32| String::from_utf8_lossy(model.tokenizer.token_bytes(token)).into_owned();
    let token_strs = request.return_token_strs.unwrap_or(false).then(|| tokens.iter().map(text).collect());
    Ok(TokenizeResponse { count: tokens.len() as u64, max_model_len: model.max_model_len, tokens, token_strs })
}

pub(crate) async fn detokenize(
    State(state): State<ServerState>,
    Extension(caller): Extension<Caller>,
    Extension(entry): Extension<Entry>,
    request: Request,
) -> Result<Json<DetokenizeResponse>, ApiError> {
    let call = Call::admit(state, caller, entry, &request)?;
    until_deadline(call, async |call| {
        let request: DetokenizeRequest = read_json(request, &call.state.config).await?;
        let model = call.state.model_called(request.model.as_deref())?;
        let tokens = request.tokens;
        tokens.iter().try_for_each(|&token| check_token("tokens", token, &model))?;
        let model = Arc::clone(&model);
        let prompt = on_text_thread(&call.state, move || Ok(model.tokenizer.decode(&tokens, false))).await?;
        Ok(Json(DetokenizeResponse { prompt }))
    })
    .await
}
