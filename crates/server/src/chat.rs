//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use plimsoll_api::ChatRequest;
use plimsoll_text::{Opening, ReasoningSyntax, TranscriptOptions};

use crate::auth::Caller;
use crate::body::read_json;
use crate::call::{Call, response_id, until_deadline};
use crate::chat_format::{Format, WithPrompt};
use crate::error::ApiError;
use crate::generation::{Generation, Order};
use crate::params::{Asked, Params};
use crate::prompt::{Chat, EncodedPrompt, encode_chat};
use crate::speech::SpeechPlan;
use crate::sse;
use crate::state::unix_seconds;
use crate::tools::Tools;
use crate::watch::Entry;
use crate::{ServedModel, ServerState, prompt_scores, unserved};

pub(crate) async fn create(
    State(state): State<ServerState>,
    Extension(caller): Extension<Caller>,
    Extension(entry): Extension<Entry>,
    request: Request,
) -> Result<Response, ApiError> {
    let call = Call::admit(state, caller, entry, &request)?;
    until_deadline(call, async |call| answer(call, request).await).await
}

async fn answer(call: Call, request: Request) -> Result<Response, ApiError> {
    let mut request: ChatRequest = read_json(request, &call.state.config).await?;
    let model = call.state.model_called(request.model.as_deref())?;
    let params = params(&mut request, &model)?;
    let tools = Tools::new(request.tools.as_deref(), request.tool_choice.as_ref(), model.dialect.tools)?;
    let continues_text = request.continue_final_message.unwrap_or(false);
    let chat = Chat {
        messages: request.messages.take().ok_or_else(|| ApiError::invalid("messages", "is missing"))?,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        template_kwargs: request.chat_template_kwargs.take(),
        reasoning_effort: request.reasoning_effort.take(),
        tools: tools.rendered.clone(),
        forced_call: tools.forced.clone(),
    };
    let chat = encode_chat(&call.state, &model, chat).await?;
    let speech = speech(&request, &params, &model, &tools, chat.opening);
    let prompt = EncodedPrompt { ids: chat.ids, echo: None };
    let prompt_ids = params.prompt_logprobs.map(|top| (top, prompt.ids.clone()));
    let id = response_id("chatcmpl", params.request_id.as_deref());
    let format = Format::new(id, unix_seconds(), &model, request.logprobs.unwrap_or(false), params.n);
    let stream = params.stream;
    let order = Order { model, params, prompts: vec![prompt], prompt_field: "messages", continues_text, speech };
    let mut generation = Generation::start(call, order)?;
    match stream {
        Some(options) => {
            generation.settle().await?;
            Ok(sse::respond(generation, format, options))
        }
        None => {
            let (choices, usage) = generation.collect().await?;
            let prompt_logprobs = prompt_ids
                .zip(choices.first())
                .map(|((top, ids), first)| prompt_scores::by_id(&ids, &first.prompt, top as usize, format.tokenizer()));
            Ok(Json(WithPrompt { completion: format.whole(choices, usage), prompt_logprobs }).into_response())
        }
    }
}

/// How the reply is read; `None` where all of it is content.
fn speech(
    request: &ChatRequest,
    params: &Params,
    model: &ServedModel,
    tools: &Tools,
    opening: Opening,
) -> Option<SpeechPlan> {
    let dialect = model.dialect;
    if dialect.reasoning == ReasoningSyntax::None && tools.is_empty() {
        return None;
    }
    let (functions, forced) = (Arc::clone(&tools.names), tools.forced.clone());
    Some(SpeechPlan {
        options: TranscriptOptions { dialect, opening, functions, forced, skip_special: params.skip_special_tokens },
        parallel_calls: request.parallel_tool_calls.unwrap_or(true),
        includes_reasoning: request.include_reasoning.unwrap_or(true),
    })
}

fn params(request: &mut ChatRequest, model: &ServedModel) -> Result<Params, ApiError> {
    unserved::check_chat(request)?;
    let fields = request.take_shared();
    if fields.echo == Some(true) {
        return Err(ApiError::not_served("echo"));
    }
    if fields.add_special_tokens == Some(true) {
        return Err(ApiError::not_served("add_special_tokens"));
    }
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::invalid("top_logprobs", "is only for requests with `logprobs: true`"));
        }
    };
    let (max_tokens, max_tokens_field) = match (request.max_completion_tokens, fields.max_tokens) {
        (Some(new), Some(old)) if new != old => {
            return Err(ApiError::invalid("max_tokens", format!("is {old}, and `max_completion_tokens` is {new}")));
        }
        (Some(new), _) => (Some(new), "max_completion_tokens"),
        (None, old) => (old, "max_tokens"),
    };
    let default_max_tokens = u32::MAX;
    let asked = Asked { logprobs, max_tokens, max_tokens_field, default_max_tokens, scores_every_choice: false };
    Params::new(fields, asked, model)
}
