//! All choices of one request, from submission to the last token. Dropping it cancels what still runs.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use plimsoll_api::{CompletionTokensDetails, PromptTokensDetails, Usage};
use plimsoll_core::FinishReason;
use plimsoll_engine::TimedEvent;
use plimsoll_text::ReasoningSyntax;

use crate::ServedModel;
use crate::call::Call;
use crate::choice::{Choice, News, Output, Piece, Spent};
use crate::error::{ApiError, of_stream_end, of_submission};
use crate::params::Params;
use crate::prompt::EncodedPrompt;
use crate::speech::SpeechPlan;

/// Events taken from one choice before the others have their turn.
const EVENTS_A_TURN: usize = 64;
/// How long a stream waits for the engine to take a request up, or to refuse it while it can still be refused with a
/// status of its own.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is to be generated.
pub(crate) struct Order {
    pub(crate) model: Arc<ServedModel>,
    pub(crate) params: Params,
    pub(crate) prompts: Vec<EncodedPrompt>,
    /// The request's field that the prompts came in.
    pub(crate) prompt_field: &'static str,
    /// The generated text goes on from a word of the prompt, rather than beginning a reply.
    pub(crate) continues_text: bool,
    /// How it is read, where the model may think or call.
    pub(crate) speech: Option<SpeechPlan>,
}

/// A request whose choices are being generated.
pub(crate) struct Generation {
    call: Call,
    choices: Vec<Choice>,
    /// Prompt tokens of each prompt.
    prompt_tokens: Vec<usize>,
    spent: Spent,
    /// The model thinks, and the usage tells how much.
    counts_reasoning: bool,
    /// What is generated is not shown, nor counted.
    only_prompt: bool,
    /// Choices that have not ended.
    live: usize,
    /// Events taken and not yet accepted; `None` where a choice's events ended.
    events: Vec<(usize, Option<TimedEvent>)>,
    pieces: Vec<Piece>,
    has_failed: bool,
}

impl Generation {
    /// Submits as many choices for each prompt as the order says.
    pub(crate) fn start(mut call: Call, order: Order) -> Result<Self, ApiError> {
        let Order { model, params, prompts, prompt_field, continues_text, speech } = order;
        let (n, limit) = (params.n as usize, call.state.admission.holds());
        let sequences = n * prompts.len();
        if sequences > limit {
            let message =
                format!("is {n} for each of {} prompts, more than this server holds ({limit})", prompts.len());
            return Err(ApiError::invalid("n", message));
        }
        let max_tokens = prompts.iter().map(|prompt| params.max_tokens_after(prompt.ids.len(), prompt_field));
        let max_tokens = max_tokens.collect::<Result<Vec<_>, _>>()?;
        let prompt_tokens: Vec<usize> = prompts.iter().map(|prompt| prompt.ids.len()).collect();
        let all_prompt_tokens = prompt_tokens.iter().sum::<usize>();
        params.check_scores(all_prompt_tokens, prompt_field)?;
        call.permit.resize(sequences, (n * all_prompt_tokens) as u64)?;
        call.entry.set_prompt_tokens(all_prompt_tokens as u64);

        let mut choices = Vec::with_capacity(sequences);
        for (index, (prompt, max_tokens)) in prompts.iter().zip(max_tokens).enumerate() {
            for choice in 0..params.n {
                let id = model.engine.next_request_id();
                let submitted = model.engine.submit(params.request(id, prompt.ids.clone(), max_tokens, choice));
                let events = submitted.map_err(|error| of_submission(error, call.permit.retry_after()))?;
                let output = Output::new(&model.tokenizer, &params, continues_text, speech.as_ref());
                choices.push(Choice::new(events, index, output, &params, call.arrived));
            }
        }
        Ok(Self {
            call,
            choices,
            prompt_tokens,
            spent: Spent::default(),
            counts_reasoning: speech.is_some_and(|plan| plan.options.dialect.reasoning != ReasoningSyntax::None),
            only_prompt: params.only_prompt,
            live: sequences,
            events: Vec::new(),
            pieces: Vec::new(),
            has_failed: false,
        })
    }

    /// Waits until the engine begins or refuses the request, or until patience ends.
    pub(crate) async fn settle(&mut self) -> Result<(), ApiError> {
        let waited = tokio::time::timeout(PATIENCE, self.wait()).await;
        if waited.is_ok() { self.accept_events() } else { Ok(()) }
    }

    /// Waits for news and takes it all in; the pieces it brought are [`Generation::take_pieces`], even where this
    /// fails. Not to be called once it is done. Cancel-safe.
    pub(crate) async fn advance(&mut self) -> Result<(), ApiError> {
        self.wait().await;
        self.accept_events()
    }

    /// Every choice has its last piece.
    pub(crate) fn is_done(&self) -> bool {
        self.live == 0
    }

    /// The pieces since the last call.
    pub(crate) fn take_pieces(&mut self) -> Vec<Piece> {
        std::mem::take(&mut self.pieces)
    }

    pub(crate) fn has_pieces(&self) -> bool {
        !self.pieces.is_empty()
    }

    pub(crate) fn call(&self) -> &Call {
        &self.call
    }

    /// Waits for the end. One piece a choice, with all of its text.
    pub(crate) async fn collect(mut self) -> Result<(Vec<Piece>, Usage), ApiError> {
        while !self.is_done() {
            self.advance().await?;
        }
        let mut whole: Vec<Option<Piece>> = self.choices.iter().map(|_| None).collect();
        for piece in self.take_pieces() {
            match &mut whole[piece.choice] {
                Some(first) => first.append(piece),
                none => *none = Some(piece),
            }
        }
        let whole = whole.into_iter().map(|piece| piece.expect("an ended choice has a last piece")).collect();
        Ok((whole, self.usage()))
    }

    /// The tokens so far.
    pub(crate) fn usage(&self) -> Usage {
        self.usage_after(self.spent)
    }

    /// The tokens when those of `spent` were.
    pub(crate) fn usage_after(&self, spent: Spent) -> Usage {
        let Spent { generated, reasoning: reasoning_tokens } = spent;
        let prompt_tokens = self.prompt_tokens.iter().sum::<usize>() as u64;
        // Choices of one prompt each had it cached, or not; the first stands for all.
        let n = self.choices.len() / self.prompt_tokens.len();
        let cached_tokens = self.choices.iter().step_by(n).map(|choice| u64::from(choice.cached_tokens)).sum();
        Usage {
            prompt_tokens,
            completion_tokens: generated,
            total_tokens: prompt_tokens + generated,
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens }),
            completion_tokens_details: self.counts_reasoning.then_some(CompletionTokensDetails { reasoning_tokens }),
        }
    }

    async fn wait(&mut self) {
        poll_fn(|context| self.poll_events(context)).await;
    }

    fn poll_events(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for (index, choice) in self.choices.iter_mut().enumerate() {
            let Some(stream) = &mut choice.events else { continue };
            for _ in 0..EVENTS_A_TURN {
                let Poll::Ready(event) = stream.poll_recv(context) else { break };
                let has_ended = event.is_none();
                self.events.push((index, event));
                if has_ended {
                    break;
                }
            }
        }
        if self.events.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    fn accept_events(&mut self) -> Result<(), ApiError> {
        let mut events = std::mem::take(&mut self.events);
        let accepted = events.drain(..).try_for_each(|(index, event)| self.accept(index, event));
        self.events = events;
        self.has_failed |= accepted.is_err();
        accepted
    }

    fn accept(&mut self, index: usize, event: Option<TimedEvent>) -> Result<(), ApiError> {
        let choice = &mut self.choices[index];
        // Ended by a stop string: what the engine had sent by then is nobody's.
        let Some(stream) = &choice.events else { return Ok(()) };
        let Some(event) = event else { return Err(of_stream_end(stream.end(), self.call.permit.retry_after())) };
        let metrics = &self.call.state.metrics;
        match choice.accept(event, metrics)? {
            News::Begun => {
                let tokens = self.prompt_tokens[choice.prompt] as u64;
                self.call.permit.begin(tokens);
                metrics.prompt_tokens.inc_by(tokens);
            }
            News::Scored => {}
            News::Token { said, prompt, scored, finish, is_reasoning } => {
                self.spent.generated += u64::from(!self.only_prompt);
                self.spent.reasoning += u64::from(is_reasoning && !self.only_prompt);
                if let Some(reason) = finish {
                    self.live -= 1;
                    self.call.permit.note_completion();
                    metrics.note_finished(finished_label(reason));
                }
                if finish.is_some() || !said.is_empty() {
                    let spent = self.spent;
                    self.pieces.push(Piece { choice: index, said, prompt, scored, finish, spent });
                }
            }
        }
        Ok(())
    }
}

fn finished_label(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.call.entry.set_generated_tokens(self.spent.generated);
        let why = if self.has_failed { "error" } else { "abort" };
        (0..self.live).for_each(|_| self.call.state.metrics.note_finished(why));
    }
}
