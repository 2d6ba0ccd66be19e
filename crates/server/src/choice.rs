//! One choice of a response: from the engine's events to text.

use std::time::Instant;

use plimsoll_core::{FinishReason, PromptLogprobs, TokenEvent, TokenId, TokenLogprobs};
use plimsoll_engine::{EventStream, TimedEvent};
use plimsoll_text::{Detokenizer, Said, StopStrings, Tokenizer};

use crate::error::ApiError;
use crate::logprobs::ScoredToken;
use crate::metrics::Metrics;
use crate::params::Params;
use crate::speech::{SpeechOut, SpeechPlan};

/// One engine request and what has come of it.
pub(crate) struct Choice {
    /// `None` once nothing more is wanted or to come. Dropping it cancels the request.
    pub(crate) events: Option<EventStream>,
    /// Which of the request's prompts it continues.
    pub(crate) prompt: usize,
    /// Prompt tokens that came from the prefix cache.
    pub(crate) cached_tokens: u32,
    output: Output,
    /// Whether the text of a stop token is shown.
    include_stop: bool,
    /// Only the prompt is wanted: the one token that is generated is not shown.
    hides_output: bool,
    /// Of the prompt's tokens but the first, until the first piece takes them along.
    prompt_scores: Vec<PromptLogprobs>,
    /// Of tokens whose text is still held back.
    scored: Vec<ScoredToken>,
    times: Times,
}

/// From ids to what they say.
pub(crate) enum Output {
    /// Content alone, as it is.
    Text(Box<TextOut>),
    Speech(Box<SpeechOut>),
}

impl Output {
    /// For a choice as `params` has it, which goes on from a word of the prompt or else begins a reply; and which is
    /// read as `speech` says, where the model may think or call.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        params: &Params,
        continues_text: bool,
        speech: Option<&SpeechPlan>,
    ) -> Self {
        match speech {
            Some(plan) => Self::Speech(Box::new(SpeechOut::new(tokenizer, params, plan))),
            None => Self::Text(Box::new(TextOut::new(tokenizer, params, continues_text))),
        }
    }

    /// Whether the choice has ended, by a stop string.
    fn push(&mut self, token: TokenId, said: &mut Said) -> bool {
        match self {
            Self::Text(text) => text.push(token, &mut said.content),
            Self::Speech(speech) => speech.push(token, said),
        }
    }

    fn finish(&mut self, said: &mut Said) -> bool {
        match self {
            Self::Text(text) => text.finish(&mut said.content),
            Self::Speech(speech) => speech.finish(said),
        }
    }

    fn is_reasoning(&self) -> bool {
        matches!(self, Self::Speech(speech) if speech.is_reasoning())
    }

    fn hides_reasoning(&self) -> bool {
        matches!(self, Self::Speech(speech) if !speech.includes_reasoning())
    }
}

/// From ids to text. Stop strings count from the first token after `min_tokens` on.
pub(crate) struct TextOut {
    detokenizer: Detokenizer,
    /// What takes over after so many more tokens.
    next: Option<(u32, Detokenizer)>,
}

impl TextOut {
    fn new(tokenizer: &Tokenizer, params: &Params, continues_text: bool) -> Self {
        let with = |stops: &StopStrings| Detokenizer::new(tokenizer, params.skip_special_tokens, stops);
        let first = if params.min_tokens == 0 { with(&params.stops) } else { with(&StopStrings::default()) };
        let next = (params.min_tokens > 0).then(|| (params.min_tokens, with(&params.stops).continuing()));
        Self { detokenizer: if continues_text { first.continuing() } else { first }, next }
    }

    /// Whether a stop string was found.
    fn push(&mut self, token: TokenId, text: &mut String) -> bool {
        match &mut self.next {
            // The one that takes over cannot know the beginning of a character.
            Some((0, _)) if !self.detokenizer.holds_text() => {
                self.detokenizer = self.next.take().expect("just seen").1;
            }
            Some((left, _)) => *left = left.saturating_sub(1),
            None => {}
        }
        self.detokenizer.push(token, text).is_some()
    }

    fn finish(&mut self, text: &mut String) -> bool {
        self.detokenizer.finish(text).is_some()
    }
}

struct Times {
    arrived: Instant,
    begun: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Instant,
}

/// Tokens generated, for a choice or a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    pub(crate) generated: u64,
    /// Of them: in thoughts, with the marks that begin and end these.
    pub(crate) reasoning: u64,
}

/// What a choice says anew.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) choice: usize,
    /// Whole characters; may be empty in the last piece.
    pub(crate) said: Said,
    /// Of the prompt's tokens but the first, in the choice's first piece, where they were asked for.
    pub(crate) prompt: Vec<PromptLogprobs>,
    /// One a token since the last piece, where they were asked for.
    pub(crate) scored: Vec<ScoredToken>,
    /// In the choice's last piece.
    pub(crate) finish: Option<FinishReason>,
    /// For the whole request, when this piece came.
    pub(crate) spent: Spent,
}

impl Piece {
    /// Adds a later piece of the same choice.
    pub(crate) fn append(&mut self, later: Self) {
        self.said.append(later.said);
        self.scored.extend(later.scored);
        self.finish = later.finish;
        self.spent = later.spent;
    }
}

/// What an event was, for the request's own books.
pub(crate) enum News {
    /// The choice's first step was planned.
    Begun,
    /// More of the prompt was scored.
    Scored,
    /// A token came, and made this text visible (or none) or ended the choice.
    Token {
        said: Said,
        prompt: Vec<PromptLogprobs>,
        scored: Vec<ScoredToken>,
        finish: Option<FinishReason>,
        /// The token was spent on thoughts.
        is_reasoning: bool,
    },
}

impl Choice {
    pub(crate) fn new(events: EventStream, prompt: usize, output: Output, params: &Params, arrived: Instant) -> Self {
        let times = Times { arrived, begun: None, first_token: None, last_token: arrived };
        Self {
            events: Some(events),
            prompt,
            cached_tokens: 0,
            output,
            include_stop: params.include_stop,
            hides_output: params.only_prompt,
            prompt_scores: Vec::new(),
            scored: Vec::new(),
            times,
        }
    }

    /// Takes one event in.
    pub(crate) fn accept(&mut self, event: TimedEvent, metrics: &Metrics) -> Result<News, ApiError> {
        let at = event.at;
        match event.event {
            TokenEvent::Scheduled { cached_tokens } => {
                self.cached_tokens = cached_tokens;
                self.times.begun = Some(at);
                metrics.queue_time.observe(seconds(self.times.arrived, at));
                Ok(News::Begun)
            }
            TokenEvent::Prompt(logprobs) => {
                self.prompt_scores.extend(logprobs);
                Ok(News::Scored)
            }
            TokenEvent::Token { token, logprobs, finish } => {
                self.note_token(at, metrics);
                let was_reasoning = self.output.is_reasoning();
                let (said, finish) = self.accept_token(token, logprobs, finish);
                let is_reasoning = was_reasoning || self.output.is_reasoning();
                if finish.is_some() {
                    self.note_end(at, metrics);
                    self.events = None;
                }
                let is_visible = finish.is_some() || !said.is_empty();
                let scored = if is_visible { std::mem::take(&mut self.scored) } else { Vec::new() };
                let prompt = if is_visible { std::mem::take(&mut self.prompt_scores) } else { Vec::new() };
                Ok(News::Token { said, prompt, scored, finish, is_reasoning })
            }
            TokenEvent::Failed(fault) => {
                self.events = None;
                Err(fault.into())
            }
        }
    }

    fn accept_token(
        &mut self,
        token: TokenId,
        logprobs: Option<Box<TokenLogprobs>>,
        finish: Option<FinishReason>,
    ) -> (Said, Option<FinishReason>) {
        let mut said = Said::default();
        if self.hides_output {
            return (said, Some(FinishReason::Length));
        }
        let mut found_stop = false;
        if finish != Some(FinishReason::Stop) || self.include_stop {
            let was_reasoning = self.output.is_reasoning();
            found_stop = self.output.push(token, &mut said);
            // Log probabilities name their tokens: those of hidden thoughts would tell them.
            let is_hidden = self.output.hides_reasoning() && (was_reasoning || self.output.is_reasoning());
            let scored = logprobs.filter(|_| !is_hidden).map(|logprobs| ScoredToken { token, logprobs });
            self.scored.extend(scored);
        }
        if finish.is_some() && !found_stop {
            found_stop = self.output.finish(&mut said);
        }
        (said, if found_stop { Some(FinishReason::Stop) } else { finish })
    }

    fn note_token(&mut self, at: Instant, metrics: &Metrics) {
        if self.times.first_token.is_none() {
            self.times.first_token = Some(at);
            metrics.time_to_first_token.observe(seconds(self.times.arrived, at));
            metrics.prefill_time.observe(seconds(self.times.begun.unwrap_or(at), at));
        } else {
            metrics.inter_token_latency.observe(seconds(self.times.last_token, at));
        }
        self.times.last_token = at;
    }

    fn note_end(&self, at: Instant, metrics: &Metrics) {
        metrics.e2e_latency.observe(seconds(self.times.arrived, at));
        metrics.decode_time.observe(seconds(self.times.first_token.unwrap_or(at), at));
    }
}

fn seconds(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64()
}
