//! From the fields of a request to what the engine is asked for: defaults, bounds, and a complaint for everything
//! that is outside them.

use std::fmt::Display;
use std::ops::RangeInclusive;

use plimsoll_api::{SharedFields, StreamOptions};
use plimsoll_core::{Request, RequestId, SamplingParams, StopConditions, TokenId};
use plimsoll_text::StopStrings;
use serde_json::Value;

use crate::error::ApiError;
use crate::{ServedModel, unserved};

/// Choices a prompt at most.
const MAX_N: u32 = 128;
/// Alternatives a position at most.
const MAX_LOGPROBS: u32 = 20;
/// Log probabilities of prompt tokens in one response at most, alternatives included: all are held until the response
/// is written, a few megabytes of JSON.
const MAX_PROMPT_LOGPROBS: usize = 1 << 17;
const MAX_STOP_STRINGS: usize = 64;
/// Bytes of one stop string at most.
const MAX_STOP_LENGTH: usize = 1024;
/// Entries of `logit_bias` and of `stop_token_ids` at most.
const MAX_TOKEN_LIST: usize = 1024;
/// Entries of `allowed_token_ids` at most: every choice keeps its own.
const MAX_ALLOWED_TOKENS: usize = 8192;
/// Below this a temperature is greedy: dividing by it would overflow.
const LEAST_TEMPERATURE: f32 = 1e-5;

/// What chats and completions each have in their own way.
pub(crate) struct Asked {
    /// Alternatives a position; `None`: no log probabilities.
    pub(crate) logprobs: Option<u32>,
    pub(crate) max_tokens: Option<u32>,
    /// The field that `max_tokens` came in.
    pub(crate) max_tokens_field: &'static str,
    /// Generated tokens at most where the request does not say; less where the context ends.
    pub(crate) default_max_tokens: u32,
    /// Every choice shows the log probabilities of its prompt; else the first alone does, for all.
    pub(crate) scores_every_choice: bool,
}

/// What a request asks for, checked.
pub(crate) struct Params {
    /// Choices a prompt; at least 1.
    pub(crate) n: u32,
    pub(crate) stream: Option<StreamOptions>,
    pub(crate) stops: StopStrings,
    /// Show the text of the stop token, too.
    pub(crate) include_stop: bool,
    pub(crate) skip_special_tokens: bool,
    pub(crate) echo: bool,
    /// vLLM's `prompt_logprobs`: alternatives of each prompt token to report.
    pub(crate) prompt_logprobs: Option<u32>,
    /// Nothing is to be generated. The engine's one token, which it cannot do without, is not shown.
    pub(crate) only_prompt: bool,
    pub(crate) add_special_tokens: Option<bool>,
    /// Generated tokens before anything may end a choice.
    pub(crate) min_tokens: u32,
    /// The client's own name for the request.
    pub(crate) request_id: Option<String>,
    sampling: SamplingParams,
    asked: Asked,
    stop_token_ids: Vec<TokenId>,
    priority: i32,
    max_model_len: u32,
}

impl Params {
    /// Checks the fields that chats and completions share; `asked` stands for its namesakes among them.
    pub(crate) fn new(mut fields: SharedFields, asked: Asked, model: &ServedModel) -> Result<Self, ApiError> {
        let prompt_logprobs = prompt_logprobs(fields.prompt_logprobs.take(), &fields)?;
        unserved::check_shared(&fields)?;
        let stop = fields.stop.as_ref().map_or(&[][..], |stop| &stop.0);
        check_stop_strings(stop)?;
        let n = in_range("n", fields.n, 1, 1..=MAX_N)?;
        let echo = fields.echo.unwrap_or(false);
        let only_prompt = asked.max_tokens == Some(0);
        if only_prompt && !echo && prompt_logprobs.is_none() {
            let message = "must be at least 1, unless the prompt itself is wanted back (`echo` or `prompt_logprobs`)";
            return Err(ApiError::invalid(asked.max_tokens_field, message));
        }
        let min_tokens = fields.min_tokens.unwrap_or(0);
        if let Some(max_tokens) = asked.max_tokens
            && min_tokens > max_tokens
        {
            let message = format!("is {min_tokens}, more than `{}`, which is {max_tokens}", asked.max_tokens_field);
            return Err(ApiError::invalid("min_tokens", message));
        }
        let include_stop = fields.include_stop_str_in_output.unwrap_or(false);
        Ok(Self {
            n,
            stream: stream_options(&fields)?,
            stops: StopStrings::new(stop, include_stop),
            include_stop,
            skip_special_tokens: fields.skip_special_tokens.unwrap_or(true),
            echo,
            prompt_logprobs,
            only_prompt,
            add_special_tokens: fields.add_special_tokens,
            min_tokens,
            stop_token_ids: stop_token_ids(&fields, model)?,
            priority: fields.priority.unwrap_or(0),
            max_model_len: model.max_model_len,
            sampling: SamplingParams {
                prompt_logprobs: scores_wanted(echo.then_some(asked.logprobs).flatten(), prompt_logprobs, model)?,
                ..sampling(&fields, asked.logprobs, model)?
            },
            request_id: checked_request_id(fields.request_id)?,
            asked,
        })
    }

    /// Generated tokens at most after a prompt of `prompt_tokens`.
    pub(crate) fn max_tokens_after(&self, prompt_tokens: usize, prompt_field: &str) -> Result<u32, ApiError> {
        let context = self.max_model_len;
        if prompt_tokens == 0 {
            return Err(ApiError::invalid(prompt_field, "has no tokens: send at least one"));
        }
        let room = u32::try_from(prompt_tokens).ok().and_then(|prompt| context.checked_sub(prompt)).unwrap_or(0);
        if room == 0 {
            let message = format!(
                "`{prompt_field}` has {prompt_tokens} tokens, and this model's context holds {context} with at least \
                 one generated token: shorten the prompt"
            );
            return Err(ApiError::context_exceeded(prompt_field, message));
        }
        let field = self.asked.max_tokens_field;
        match self.asked.max_tokens {
            Some(max) if max > room => Err(ApiError::context_exceeded(
                field,
                format!(
                    "`{field}` is {max}, but the prompt has {prompt_tokens} tokens and this model's context holds \
                     {context}: ask for at most {room}, or shorten the prompt"
                ),
            )),
            None if self.min_tokens > room => Err(ApiError::context_exceeded(
                "min_tokens",
                format!("`min_tokens` is {}, but after the prompt there is room for {room} tokens", self.min_tokens),
            )),
            // The engine generates at least one.
            Some(max) => Ok(max.max(1)),
            None => Ok(room.min(self.asked.default_max_tokens.max(self.min_tokens))),
        }
    }

    /// Refuses what would make a response too large to hold: `tokens` tokens of all prompts, with alternatives.
    pub(crate) fn check_scores(&self, tokens: usize, prompt_field: &str) -> Result<(), ApiError> {
        let Some(top) = self.sampling.prompt_logprobs else { return Ok(()) };
        let choices = if self.asked.scores_every_choice { self.n as usize } else { 1 };
        let tokens = choices * tokens;
        if tokens.saturating_mul(1 + top as usize) > MAX_PROMPT_LOGPROBS {
            let message = format!(
                "has {tokens} tokens to score, with {top} alternatives each: more than the {MAX_PROMPT_LOGPROBS} log \
                 probabilities of prompts that one response may hold; send fewer or shorter prompts a request, or ask \
                 for fewer alternatives"
            );
            return Err(ApiError::invalid(prompt_field, message));
        }
        Ok(())
    }

    /// The engine request for choice number `choice` of a prompt.
    pub(crate) fn request(&self, id: RequestId, prompt: Vec<TokenId>, max_tokens: u32, choice: u32) -> Request {
        let seed = self.sampling.seed.wrapping_add(u64::from(choice));
        let is_scored = self.asked.scores_every_choice || choice == 0;
        let prompt_logprobs = self.sampling.prompt_logprobs.filter(|_| is_scored);
        Request {
            id,
            prompt,
            sampling: SamplingParams { seed, prompt_logprobs, ..self.sampling.clone() },
            stop: StopConditions {
                max_tokens,
                min_tokens: self.min_tokens,
                stop_token_ids: self.stop_token_ids.clone(),
            },
            priority: self.priority,
        }
    }
}

fn sampling(fields: &SharedFields, logprobs: Option<u32>, model: &ServedModel) -> Result<SamplingParams, ApiError> {
    let defaults = &model.defaults;
    let temperature = in_range("temperature", fields.temperature, defaults.temperature, 0.0..=2.0)?;
    let top_p = in_range("top_p", fields.top_p, defaults.top_p, 0.0..=1.0)?;
    let top_k = match in_range("top_k", fields.top_k, i64::from(defaults.top_k), -1..=i64::MAX)? {
        // The smallest set that reaches a probability of nothing is still one token.
        _ if top_p == 0.0 => 1,
        all if all < 1 => 0,
        k => k.min(i64::from(model.vocab_size)) as u32,
    };
    if let Some(count) = logprobs
        && count > MAX_LOGPROBS
    {
        return Err(ApiError::invalid("logprobs", format!("must be at most {MAX_LOGPROBS} alternatives, not {count}")));
    }
    Ok(SamplingParams {
        temperature: if temperature < LEAST_TEMPERATURE { 0.0 } else { temperature },
        top_k,
        top_p: if top_p == 0.0 { 1.0 } else { top_p },
        min_p: in_range("min_p", fields.min_p, defaults.min_p, 0.0..=1.0)?,
        frequency_penalty: in_range("frequency_penalty", fields.frequency_penalty, 0.0, -2.0..=2.0)?,
        presence_penalty: in_range("presence_penalty", fields.presence_penalty, 0.0, -2.0..=2.0)?,
        repetition_penalty: in_range(
            "repetition_penalty",
            fields.repetition_penalty,
            defaults.repetition_penalty,
            0.01..=100.0,
        )?,
        logit_bias: logit_bias(fields, model)?,
        allowed_token_ids: allowed_token_ids(fields, model)?,
        // Seeds are compared by equality alone: the sign is one more bit.
        seed: fields.seed.map_or_else(rand::random, |seed| seed as u64),
        logprobs,
        prompt_logprobs: None,
    })
}

/// vLLM's `prompt_logprobs`.
fn prompt_logprobs(value: Option<Value>, fields: &SharedFields) -> Result<Option<u32>, ApiError> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Ok(None) };
    let count = value.as_u64().filter(|&count| count <= u64::from(MAX_LOGPROBS));
    let Some(count) = count else {
        let message = format!("must be from 0 to {MAX_LOGPROBS} alternatives a token");
        return Err(ApiError::invalid("prompt_logprobs", message));
    };
    if fields.stream == Some(true) {
        let message = "cannot go with `stream`: send `stream: false`, or `echo` with `logprobs` to `/v1/completions`";
        return Err(ApiError::invalid("prompt_logprobs", message));
    }
    Ok(Some(count as u32))
}

/// Alternatives of each prompt token that the engine is asked for, to serve both kinds of request.
fn scores_wanted(echo: Option<u32>, prompt: Option<u32>, model: &ServedModel) -> Result<Option<u32>, ApiError> {
    let wanted = echo.max(prompt);
    if wanted.is_some() && !model.engine.scores_prompts() {
        let param = if prompt.is_some() { "prompt_logprobs" } else { "echo" };
        return Err(ApiError::Invalid {
            message: format!("`{param}`: log probabilities of the prompt are not served on a GPU yet; leave it out"),
            param: Some(param.to_owned()),
            code: Some("not_served"),
        });
    }
    Ok(wanted)
}

fn in_range<T: PartialOrd + Display>(
    param: &str,
    value: Option<T>,
    default: T,
    allowed: RangeInclusive<T>,
) -> Result<T, ApiError> {
    let value = value.unwrap_or(default);
    if allowed.contains(&value) {
        return Ok(value);
    }
    let (from, to) = (allowed.start(), allowed.end());
    Err(ApiError::invalid(param, format!("must be from {from} to {to}, not {value}")))
}

fn stream_options(fields: &SharedFields) -> Result<Option<StreamOptions>, ApiError> {
    match (fields.stream.unwrap_or(false), fields.stream_options) {
        (true, options) => Ok(Some(options.unwrap_or_default())),
        (false, None) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid("stream_options", "is only for requests with `stream: true`")),
    }
}

fn check_stop_strings(stop: &[String]) -> Result<(), ApiError> {
    if stop.len() > MAX_STOP_STRINGS {
        let message = format!("has {} strings; send at most {MAX_STOP_STRINGS}", stop.len());
        return Err(ApiError::invalid("stop", message));
    }
    if stop.iter().any(String::is_empty) {
        return Err(ApiError::invalid("stop", "holds an empty string, which would end every text at once"));
    }
    if stop.iter().any(|text| text.len() > MAX_STOP_LENGTH) {
        return Err(ApiError::invalid("stop", format!("holds a string of more than {MAX_STOP_LENGTH} bytes")));
    }
    Ok(())
}

fn stop_token_ids(fields: &SharedFields, model: &ServedModel) -> Result<Vec<TokenId>, ApiError> {
    let given = fields.stop_token_ids.as_deref().unwrap_or_default();
    check_list_length("stop_token_ids", given.len(), MAX_TOKEN_LIST)?;
    given.iter().try_for_each(|&id| check_token("stop_token_ids", id, model))?;
    let mut ids = if fields.ignore_eos.unwrap_or(false) { Vec::new() } else { model.eos_token_ids.clone() };
    ids.extend(given);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn logit_bias(fields: &SharedFields, model: &ServedModel) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(biases) = &fields.logit_bias else { return Ok(Vec::new()) };
    check_list_length("logit_bias", biases.len(), MAX_TOKEN_LIST)?;
    for (&id, &bias) in biases {
        check_token("logit_bias", id, model)?;
        in_range(&format!("logit_bias.{id}"), Some(bias), 0.0, -100.0..=100.0)?;
    }
    Ok(biases.iter().map(|(&id, &bias)| (id, bias)).collect())
}

fn allowed_token_ids(fields: &SharedFields, model: &ServedModel) -> Result<Option<Vec<TokenId>>, ApiError> {
    let Some(allowed) = &fields.allowed_token_ids else { return Ok(None) };
    if allowed.is_empty() {
        return Err(ApiError::invalid("allowed_token_ids", "is empty: no token could follow; leave it out instead"));
    }
    check_list_length("allowed_token_ids", allowed.len(), MAX_ALLOWED_TOKENS)?;
    allowed.iter().try_for_each(|&id| check_token("allowed_token_ids", id, model))?;
    let mut ids = allowed.clone();
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}

fn check_list_length(param: &str, length: usize, limit: usize) -> Result<(), ApiError> {
    if length > limit {
        return Err(ApiError::invalid(param, format!("has {length} entries; send at most {limit}")));
    }
    Ok(())
}

/// Refuses a token id that the model does not have: it would reach into some other request's row.
pub(crate) fn check_token(param: &str, id: TokenId, model: &ServedModel) -> Result<(), ApiError> {
    if id >= model.vocab_size {
        let message = format!("holds token id {id}, outside the model's vocabulary of {}", model.vocab_size);
        return Err(ApiError::invalid(param, message));
    }
    Ok(())
}

fn checked_request_id(id: Option<String>) -> Result<Option<String>, ApiError> {
    match id {
        Some(id) if !is_plain_id(&id) => {
            Err(ApiError::invalid("request_id", "must be 1 to 128 letters, digits, `-`, `_`, `.` or `:`"))
        }
        other => Ok(other),
    }
}

/// Whether a client's own id may stand in headers, bodies and the log.
pub(crate) fn is_plain_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    (1..=128).contains(&id.len()) && id.bytes().all(is_plain)
}
