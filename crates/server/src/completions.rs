//! `POST /v1/completions`

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use plimsoll_api::{Completion, CompletionChoice, CompletionLogprobs, CompletionRequest, FinishReason, Usage};
use plimsoll_core::TokenId;

use crate::auth::Caller;
use crate::body::read_json;
use crate::call::{Call, response_id, until_deadline};
use crate::choice::Piece;
use crate::error::ApiError;
use crate::generation::{Generation, Order};
use crate::logprobs::{ScoredToken, for_completion};
use crate::params::{Asked, Params};
use crate::prompt::{EncodedPrompt, encode_prompts};
use crate::sse::{self, EventBuffer, StreamFormat};
use crate::state::unix_seconds;
use crate::watch::Entry;
use crate::{ServedModel, ServerState, prompt_scores, unserved};

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
    let prompts = encode_prompts(&call.state, &model, prompt, add_special, params.echo).await?;
    let has_scores = params.prompt_logprobs.is_some() || (params.echo && request.logprobs.is_some());
    let choice = |prompt: &EncodedPrompt| {
        let ids = if has_scores { prompt.ids.clone() } else { Vec::new() };
        ChoiceText { echo: prompt.echo.clone(), ids, offset: 0 }
    };
    let choices = prompts.iter().flat_map(|prompt| std::iter::repeat_n(choice(prompt), params.n as usize));
    let mut format = Format {
        id: response_id("cmpl", params.request_id.as_deref()),
        created: unix_seconds(),
        model: Arc::clone(&model),
        logprobs: request.logprobs,
        prompt_logprobs: params.prompt_logprobs,
        choices: choices.collect(),
    };
    let stream = params.stream;
    let order = Order { model, params, prompts, prompt_field: "prompt", continues_text: true, speech: None };
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
    let asked = Asked {
        logprobs: request.logprobs,
        max_tokens: fields.max_tokens,
        max_tokens_field: "max_tokens",
        default_max_tokens: DEFAULT_MAX_TOKENS,
        scores_every_choice: true,
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
    /// Alternatives of each token.
    logprobs: Option<u32>,
    /// Alternatives of each prompt token, in vLLM's field.
    prompt_logprobs: Option<u32>,
    choices: Vec<ChoiceText>,
}

/// What the format has to know of a choice's text so far.
#[derive(Clone)]
struct ChoiceText {
    /// The prompt, until it was written.
    echo: Option<String>,
    /// The prompt's tokens, where they are scored.
    ids: Vec<TokenId>,
    /// Characters of the text before the next token that has log probabilities.
    offset: usize,
}

impl Format {
    fn whole(&mut self, choices: Vec<Piece>, usage: Usage) -> Completion<'_> {
        let choices = choices.into_iter().map(|piece| {
            let echoed = self.take_echo(&piece);
            let logprobs = self.logprobs(piece.choice, &piece.scored);
            let (text, logprobs) = match echoed {
                Some((prompt, scores)) => {
                    (prompt + &piece.said.content, scores.zip(logprobs).map(prompt_scores::joined))
                }
                None => (piece.said.content, logprobs),
            };
            let prompt_logprobs = self.prompt_logprobs.map(|top| {
                let ids = &self.choices[piece.choice].ids;
                prompt_scores::by_id(ids, &piece.prompt, top as usize, &self.model.tokenizer)
            });
            CompletionChoice {
                index: piece.choice as u32,
                text: text.into(),
                logprobs,
                finish_reason: piece.finish.map(wire_reason),
                prompt_logprobs,
            }
        });
        let choices = choices.collect();
        self.completion(choices, Some(usage))
    }

    fn logprobs(&mut self, choice: usize, scored: &[ScoredToken]) -> Option<CompletionLogprobs> {
        let offset = &mut self.choices[choice].offset;
        self.logprobs.map(|_| for_completion(scored, &self.model.tokenizer, offset))
    }

    /// The prompt that a choice's text begins with, and its log probabilities where they are wanted; `None` once taken.
    fn take_echo(&mut self, piece: &Piece) -> Option<(String, Option<CompletionLogprobs>)> {
        let choice = &mut self.choices[piece.choice];
        let prompt = choice.echo.take()?;
        choice.offset = prompt.chars().count();
        let tokenizer = &self.model.tokenizer;
        let scores = |top| prompt_scores::of_echo(&prompt, &choice.ids, &piece.prompt, top as usize, tokenizer);
        let scores = self.logprobs.map(scores);
        Some((prompt, scores))
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
        // vLLM's field is for whole responses alone.
        let prompt_logprobs = None;
        let text = text.into();
        let choice = CompletionChoice { index: index as u32, text, logprobs, finish_reason, prompt_logprobs };
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
        if let Some((prompt, scores)) = self.take_echo(piece) {
            self.write(index, &prompt, scores, None, usage, events);
        }
        if !piece.said.content.is_empty() || !piece.scored.is_empty() {
            let logprobs = self.logprobs(index, &piece.scored);
            self.write(index, &piece.said.content, logprobs, None, usage, events);
        }
        if let Some(reason) = piece.finish {
            self.write(index, "", None, Some(wire_reason(reason)), usage, events);
        }
    }

    fn write_usage(&mut self, usage: Usage, events: &mut EventBuffer) {
        events.push(&self.completion(Vec::new(), Some(usage)));
    }
}
