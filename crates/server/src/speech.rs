//! What a chat's choice says, token by token: thoughts, content and calls, with the stop strings of the request.
//!
//! Stop strings are looked for in the content alone: a model may think of them, and write them into arguments. Log
//! probabilities are of every token all the same, of calls and of thoughts that are shown too: each goes out with what
//! it says.

use plimsoll_core::TokenId;
use plimsoll_text::{Said, StopMatcher, Tokenizer, Transcript, TranscriptOptions};

use crate::params::Params;

/// How a chat's reply is read.
pub(crate) struct SpeechPlan {
    pub(crate) options: TranscriptOptions,
    /// Several calls in one message.
    pub(crate) parallel_calls: bool,
    /// Thoughts are shown.
    pub(crate) includes_reasoning: bool,
}

/// One choice's way from ids to what they say.
pub(crate) struct SpeechOut {
    transcript: Transcript,
    stops: Option<StopMatcher>,
    /// Tokens to come before stop strings count.
    unstoppable: u32,
    /// Stop strings count.
    is_stoppable: bool,
    parallel_calls: bool,
    includes_reasoning: bool,
    /// What one token says, before stop strings.
    fresh: Said,
}

impl SpeechOut {
    pub(crate) fn new(tokenizer: &Tokenizer, params: &Params, plan: &SpeechPlan) -> Self {
        Self {
            transcript: Transcript::new(tokenizer, &plan.options),
            stops: params.stops.matcher(),
            unstoppable: params.min_tokens,
            is_stoppable: false,
            parallel_calls: plan.parallel_calls,
            includes_reasoning: plan.includes_reasoning,
            fresh: Said::default(),
        }
    }

    /// Whether a stop string was found, or a call that may not be: then the choice has ended.
    pub(crate) fn push(&mut self, token: TokenId, said: &mut Said) -> bool {
        // A character that began before stop strings count is none of them.
        self.is_stoppable |= self.unstoppable == 0 && !self.transcript.holds_bytes();
        self.transcript.push(token, &mut self.fresh);
        let has_ended = self.pass_on(said);
        self.unstoppable = self.unstoppable.saturating_sub(1);
        has_ended
    }

    pub(crate) fn finish(&mut self, said: &mut Said) -> bool {
        self.transcript.finish(&mut self.fresh);
        let has_ended = self.pass_on(said);
        if let Some(stops) = self.stops.as_mut().filter(|_| !has_ended) {
            stops.finish(&mut said.content);
        }
        has_ended
    }

    /// Whether the model is thinking.
    pub(crate) fn is_reasoning(&self) -> bool {
        self.transcript.is_reasoning()
    }

    /// Thoughts are shown.
    pub(crate) fn includes_reasoning(&self) -> bool {
        self.includes_reasoning
    }

    fn pass_on(&mut self, said: &mut Said) -> bool {
        let mut fresh = std::mem::take(&mut self.fresh);
        if !self.includes_reasoning {
            fresh.reasoning.clear();
        }
        let content = std::mem::take(&mut fresh.content);
        let mut has_ended = match &mut self.stops {
            Some(stops) if self.is_stoppable => stops.push(&content, &mut said.content).is_some(),
            _ => {
                said.content.push_str(&content);
                false
            }
        };
        if !self.parallel_calls && fresh.calls.iter().any(|call| call.index > 0) {
            fresh.calls.retain(|call| call.index == 0);
            has_ended = true;
        }
        said.append(fresh);
        has_ended
    }
}
