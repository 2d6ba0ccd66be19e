//! `POST /v1/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use plimsoll_api::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, FinishReason, Usage};

use crate::auth::Caller;
use crate::body::read_json;
use crate::call::{Call, response_id, until_deadline};
use crate::choice::Piece;
use crate::error::ApiError;
use crate::generation::{Generation, Order};
use crate::logprobs::{ScoredToken, for_completion};
use crate::params::{Asked, Params};
use crate::prompt::encode_prompts;
use crate::sse::{self, EventBuffer, StreamFormat};
use crate::state::unix_seconds;
use crate::watch::Entry;
use crate::{ServedModel, ServerState, unserved};

/// What OpenAI generates where a request does not say.
const DEFAULT_MAX_TOKENS: u32 = 16;

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
    let mut request: CompletionRequest = read_json(request, &call.state.config).await?;
    let model = call.state.model_called(request.model.as_deref())?;
    let params = params(&mut request, &model)?;
    let prompt = request.prompt.take().ok_or_else(|| ApiError::invalid("prompt", "is missing"))?;
    let add_special = params.add_special_tokens.unwrap_or(true);
    let mut prompts = encode_prompts(&call.state, &model, prompt, add_special, params.echo).await?;
    let echoes = prompts.iter_mut().map(|prompt| prompt.echo.take());
    let choices = echoes.flat_map(|echo| std::iter::repeat_n(echo, params.n as usize));
    let mut format = Format {
        id: response_id("cmpl", params.request_id.as_deref()),
        created: unix_seconds(),
        model: Arc::clone(&model),
        has_logprobs: request.logprobs.is_some(),
        choices: choices.map(|echo| ChoiceText { echo, offset: 0 }).collect(),
    };
    let stream = params.stream;
    let order = Order { model, params, prompts, prompt_field: "prompt", continues_text: true };
    let mut generation = Generation::start(call, order)?;
    match stream {
        Some(options) => {
            generation.settle().await?;
            Ok(sse::respond(generation, format, options))
        }
        None => {
            let (choices, usage) = generation.collect().await?;
            Ok(Json(format.whole(choices, usage)).into_response())
        }
    }
}

fn params(request: &mut CompletionRequest, model: &ServedModel) -> Result<Params, ApiError> {
    unserved::check_completion(request)?;
    let fields = request.take_shared();
    if fields.echo == Some(true) && request.logprobs.is_some() {
        // It would need the prompt's own log probabilities.
        let message = "`logprobs` with `echo` is not served yet: leave one of them out".to_owned();
        return Err(ApiError::Invalid { message, param: Some("logprobs".to_owned()), code: Some("not_served") });
    }
    let asked = Asked {
        logprobs: request.logprobs,
        max_tokens: fields.max_tokens,
        max_tokens_field: "max_tokens",
        default_max_tokens: DEFAULT_MAX_TOKENS,
    };
    Params::new(fields, asked, model)
}

/// Why a choice ended, as the wire has it.
pub(crate) fn wire_reason(reason: plimsoll_core::FinishReason) -> FinishReason {
    match reason {
        plimsoll_core::FinishReason::Stop => FinishReason::Stop,
        plimsoll_core::FinishReason::Length => FinishReason::Length,
    }
}

/// How the response is written, streamed or whole.
struct Format {
    id: String,
    created: u64,
    model: Arc<ServedModel>,
    has_logprobs: bool,
    choices: Vec<ChoiceText>,
}

/// What the format has to know of a choice's text so far.
struct ChoiceText {
    /// The prompt, until it was written.
    echo: Option<String>,
    /// Characters of the tokens that have log probabilities.
    offset: usize,
}

impl Format {
    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> Completion<'_> {
        let choices = choices.into_iter().map(|piece| {
            let logprobs = self.logprobs(piece.choice, &piece.scored);
            let text = match self.choices[piece.choice].echo.take() {
                Some(prompt) => prompt + &piece.text,
                None => piece.text,
            };
            let finish_reason = piece.finish.map(wire_reason);
            CompletionChoice { index: piece.choice as u32, text: text.into(), logprobs, finish_reason }
        });
        let choices = choices.collect();
        self.completion(choices, Some(usage))
    }

    fn logprobs(&mut self, choice: usize, scored: &[ScoredToken]) -> Option<CompletionLogprobs> {
        let offset = &mut self.choices[choice].offset;
        self.has_logprobs.then(|| for_completion(scored, &self.model.tokenizer, offset))
    }

    fn write(
        &self,
        index: usize,
        text: &str,
        logprobs: Option<CompletionLogprobs>,
        finish_reason: Option<FinishReason>,
        usage: Option<Usage>,
        events: &mut EventBuffer,
    ) {
        let choice = CompletionChoice { index: index as u32, text: text.into(), logprobs, finish_reason };
        events.push(&self.completion(vec![choice], usage));
    }

    fn completion<'a>(&'a self, choices: Vec<CompletionChoice<'a>>, usage: Option<Usage>) -> Completion<'a> {
        Completion {
            id: self.id.as_str().into(),
            object: "text_completion".into(),
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
        if let Some(prompt) = self.choices[index].echo.take() {
            self.write(index, &prompt, None, None, usage, events);
        }
        if !piece.text.is_empty() || !piece.scored.is_empty() {
            let logprobs = self.logprobs(index, &piece.scored);
            self.write(index, &piece.text, logprobs, None, usage, events);
        }
        if let Some(reason) = piece.finish {
            self.write(index, "", None, Some(wire_reason(reason)), usage, events);
        }
    }

    fn write_usage(&mut self, usage: Usage, events: &mut EventBuffer) {
        events.push(&self.completion(Vec::new(), Some(usage)));
    }
}
