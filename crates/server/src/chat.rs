//! `POST /v1/chat/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use plimsoll_api::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, ChatRequest, Delta, FinishReason,
    PromptLogprobList, ResponseMessage, Role, Usage,
};
use serde::Serialize;

use crate::auth::Caller;
use crate::body::read_json;
use crate::call::{Call, response_id, until_deadline};
use crate::choice::Piece;
use crate::completions::wire_reason;
use crate::error::ApiError;
use crate::generation::{Generation, Order};
use crate::logprobs::{ScoredToken, for_chat};
use crate::params::{Asked, Params};
use crate::prompt::{Chat, EncodedPrompt, encode_chat};
use crate::sse::{self, EventBuffer, StreamFormat};
use crate::state::unix_seconds;
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
    let continues_text = request.continue_final_message.unwrap_or(false);
    let chat = Chat {
        messages: request.messages.take().ok_or_else(|| ApiError::invalid("messages", "is missing"))?,
        add_generation_prompt: request.add_generation_prompt,
        continue_final_message: request.continue_final_message,
        template_kwargs: request.chat_template_kwargs.take(),
    };
    let prompt = EncodedPrompt { ids: encode_chat(&call.state, &model, chat).await?, echo: None };
    let prompt_ids = params.prompt_logprobs.map(|top| (top, prompt.ids.clone()));
    let format = Format {
        id: response_id("chatcmpl", params.request_id.as_deref()),
        created: unix_seconds(),
        model: Arc::clone(&model),
        has_logprobs: request.logprobs.unwrap_or(false),
        has_role: vec![false; params.n as usize],
    };
    let stream = params.stream;
    let order = Order { model, params, prompts: vec![prompt], prompt_field: "messages", continues_text };
    let mut generation = Generation::start(call, order)?;
    match stream {
        Some(options) => {
            generation.settle().await?;
            Ok(sse::respond(generation, format, options))
        }
        None => {
            let (choices, usage) = generation.collect().await?;
            let prompt_logprobs = prompt_ids.zip(choices.first()).map(|((top, ids), first)| {
                prompt_scores::by_id(&ids, &first.prompt, top as usize, &format.model.tokenizer)
            });
            Ok(Json(WithPrompt { completion: format.whole(choices, usage), prompt_logprobs }).into_response())
        }
    }
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
    Params::new(fields, Asked { logprobs, max_tokens, max_tokens_field, default_max_tokens: u32::MAX }, model)
}

/// A whole response with vLLM's field, which stands beside the choices.
#[derive(Serialize)]
struct WithPrompt {
    #[serde(flatten)]
    completion: ChatCompletion,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobList>,
}

/// How the response is written, streamed or whole.
struct Format {
    id: String,
    created: u64,
    model: Arc<ServedModel>,
    has_logprobs: bool,
    /// Of each choice: its first chunk, which alone has the role, was written.
    has_role: Vec<bool>,
}

impl Format {
    fn whole(self, choices: Vec<Piece>, usage: Usage) -> ChatCompletion {
        let choice = |(index, piece): (usize, Piece)| ChatChoice {
            index: index as u32,
            logprobs: self.logprobs(&piece.scored),
            finish_reason: piece.finish.map(wire_reason),
            message: ResponseMessage {
                role: Role::Assistant,
                content: Some(piece.text),
                reasoning: None,
                reasoning_content: None,
                tool_calls: None,
            },
        };
        let choices = choices.into_iter().enumerate().map(choice).collect();
        let model = self.model.name.clone();
        let object = "chat.completion".to_owned();
        ChatCompletion { id: self.id, object, created: self.created, model, choices, usage: Some(usage) }
    }

    fn logprobs(&self, scored: &[ScoredToken]) -> Option<ChatLogprobs> {
        self.has_logprobs.then(|| for_chat(scored, &self.model.tokenizer))
    }

    fn write(
        &self,
        index: usize,
        delta: Delta<'_>,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReason>,
        usage: Option<Usage>,
        events: &mut EventBuffer,
    ) {
        let choice = ChatChunkChoice { index: index as u32, delta, logprobs, finish_reason };
        events.push(&self.chunk(vec![choice], usage));
    }

    fn chunk<'a>(&'a self, choices: Vec<ChatChunkChoice<'a>>, usage: Option<Usage>) -> ChatChunk<'a> {
        ChatChunk {
            id: self.id.as_str().into(),
            object: "chat.completion.chunk".into(),
            created: self.created,
            model: self.model.name.as_str().into(),
            choices,
            usage,
        }
    }
}

impl StreamFormat for Format {
    fn write_piece(&mut self, piece: &Piece, usage: Option<Usage>, events: &mut EventBuffer) {
        let index = piece.choice;
        if !std::mem::replace(&mut self.has_role[index], true) {
            let first = Delta { role: Some(Role::Assistant), content: Some("".into()), ..Delta::default() };
            self.write(index, first, None, None, usage, events);
        }
        if !piece.text.is_empty() || !piece.scored.is_empty() {
            let delta = Delta { content: Some(piece.text.as_str().into()), ..Delta::default() };
            self.write(index, delta, self.logprobs(&piece.scored), None, usage, events);
        }
        if let Some(reason) = piece.finish {
            self.write(index, Delta::default(), None, Some(wire_reason(reason)), usage, events);
        }
    }

    fn write_usage(&mut self, usage: Usage, events: &mut EventBuffer) {
        events.push(&self.chunk(Vec::new(), Some(usage)));
    }
}
