//! How a chat's response is written: as one object, or as the chunks of a stream.

use std::borrow::Cow;
use std::sync::Arc;

use plimsoll_api::{
    ChatChoice, ChatChunk, ChatChunkChoice, ChatCompletion, ChatLogprobs, Delta, FinishReason, FunctionCall,
    FunctionDelta, FunctionKind, PromptLogprobList, ResponseMessage, Role, ToolCall, ToolCallDelta, Usage,
};
use plimsoll_text::{CallPart, Said, Tokenizer};
use serde::Serialize;

use crate::ServedModel;
use crate::choice::Piece;
use crate::completions::wire_reason;
use crate::logprobs::{ScoredToken, for_chat};
use crate::sse::{EventBuffer, StreamFormat};

/// A whole response with vLLM's field, which stands beside the choices.
#[derive(Serialize)]
pub(crate) struct WithPrompt {
    #[serde(flatten)]
    pub(crate) completion: ChatCompletion,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_logprobs: Option<PromptLogprobList>,
}

/// How the response is written, streamed or whole.
pub(crate) struct Format {
    id: String,
    created: u64,
    model: Arc<ServedModel>,
    has_logprobs: bool,
    choices: Vec<Written>,
}

/// What of a choice was written.
#[derive(Clone, Copy, Default)]
struct Written {
    /// The first chunk, which alone has the role.
    role: bool,
    /// A call.
    calls: bool,
}

impl Format {
    pub(crate) fn new(id: String, created: u64, model: &Arc<ServedModel>, has_logprobs: bool, n: u32) -> Self {
        let choices = vec![Written::default(); n as usize];
        Self { id, created, model: Arc::clone(model), has_logprobs, choices }
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.model.tokenizer
    }

    pub(crate) fn whole(self, choices: Vec<Piece>, usage: Usage) -> ChatCompletion {
        let choice = |(index, piece): (usize, Piece)| ChatChoice {
            index: index as u32,
            logprobs: self.logprobs(&piece.scored),
            finish_reason: piece.finish.map(|reason| chat_reason(reason, !piece.said.calls.is_empty())),
            message: self.message(piece.said),
        };
        let choices = choices.into_iter().enumerate().map(choice).collect();
        let model = self.model.name.clone();
        let object = "chat.completion".to_owned();
        ChatCompletion { id: self.id, object, created: self.created, model, choices, usage: Some(usage) }
    }

    fn message(&self, said: Said) -> ResponseMessage {
        let reasoning = (!said.reasoning.is_empty()).then_some(said.reasoning);
        let calls: Vec<ToolCall> = said.calls.into_iter().map(whole_call).collect();
        ResponseMessage {
            role: Role::Assistant,
            content: (calls.is_empty() || !said.content.is_empty()).then_some(said.content),
            reasoning_content: reasoning.clone().filter(|_| self.model.adds_reasoning_content),
            reasoning,
            tool_calls: (!calls.is_empty()).then_some(calls),
        }
    }

    fn delta<'a>(&self, said: &'a Said) -> Delta<'a> {
        let reasoning = (!said.reasoning.is_empty()).then_some(Cow::Borrowed(said.reasoning.as_str()));
        // A delta with log probabilities alone says so with an empty content, as clients know it.
        let has_content = !said.content.is_empty() || said.is_empty();
        Delta {
            content: has_content.then(|| said.content.as_str().into()),
            reasoning_content: reasoning.clone().filter(|_| self.model.adds_reasoning_content),
            reasoning,
            tool_calls: (!said.calls.is_empty()).then(|| said.calls.iter().map(call_delta).collect()),
            ..Delta::default()
        }
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
        if !std::mem::replace(&mut self.choices[index].role, true) {
            let first = Delta { role: Some(Role::Assistant), content: Some("".into()), ..Delta::default() };
            self.write(index, first, None, None, usage, events);
        }
        self.choices[index].calls |= !piece.said.calls.is_empty();
        if !piece.said.is_empty() || !piece.scored.is_empty() {
            let delta = self.delta(&piece.said);
            self.write(index, delta, self.logprobs(&piece.scored), None, usage, events);
        }
        if let Some(reason) = piece.finish {
            let reason = chat_reason(reason, self.choices[index].calls);
            self.write(index, Delta::default(), None, Some(reason), usage, events);
        }
    }

    fn write_usage(&mut self, usage: Usage, events: &mut EventBuffer) {
        events.push(&self.chunk(Vec::new(), Some(usage)));
    }
}

/// A choice that called ended for that, unless it was cut off.
fn chat_reason(reason: plimsoll_core::FinishReason, has_calls: bool) -> FinishReason {
    match wire_reason(reason) {
        FinishReason::Stop if has_calls => FinishReason::ToolCalls,
        other => other,
    }
}

/// An id that no other call has.
fn call_id() -> String {
    format!("call_{:032x}", rand::random::<u128>())
}

fn whole_call(call: CallPart) -> ToolCall {
    let function = FunctionCall { name: call.name.unwrap_or_default(), arguments: call.arguments };
    ToolCall { id: call_id(), kind: FunctionKind::Function, function }
}

fn call_delta(part: &CallPart) -> ToolCallDelta<'_> {
    let begins = part.name.is_some();
    ToolCallDelta {
        index: part.index as u32,
        id: begins.then(|| call_id().into()),
        kind: begins.then_some(FunctionKind::Function),
        function: FunctionDelta {
            name: part.name.as_deref().map(Cow::Borrowed),
            arguments: Some(part.arguments.as_str().into()),
        },
    }
}
