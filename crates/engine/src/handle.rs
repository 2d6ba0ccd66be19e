//! The engine as the rest of the process sees it: [`spawn`] starts it, an [`EngineHandle`] submits to it and asks
//! about it, and an [`Engine`] waits for its end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use plimsoll_core::{Executor, Request, RequestId, TokenId};
use plimsoll_sched::Scheduler;

use crate::engine;
use crate::inbox::{Phase, Shared};
use crate::stats::EngineStats;
use crate::stream::EventStream;

/// Bounds of the engine's queues.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Requests submitted and not ended at most, running ones included: `max_num_seqs` and as many as may wait.
    /// The scheduler's own bound on waiting requests should not be lower, or requests let in here are refused there.
    pub max_requests: usize,
    /// Prompt tokens at most of requests whose first step is still to come. A longer prompt is let in when alone.
    pub max_queued_tokens: u64,
    /// Unread events that one request may have; beyond, it is cancelled. A client that is slow for a moment must not
    /// be, so this should cover a burst of seconds: 4096 events are 40 s at 100 tokens/s and hold at most 200 KiB.
    /// A request whose `max_tokens` is lower never has more events, and so never overruns.
    pub event_capacity: usize,
    /// Token ids of a request (prompt, logit bias, allowed, stop) are below this.
    pub vocab_size: u32,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { max_requests: 4096, max_queued_tokens: 1 << 22, event_capacity: 4096, vocab_size: u32::MAX }
    }
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("as many requests as the engine may hold are waiting or running; try again later")]
    QueueFull,
    #[error("the server is shutting down and takes no new requests")]
    Draining,
    #[error("the engine has failed and must be restarted")]
    Dead,
    #[error("token id {token} is outside the model's vocabulary of {vocab_size}")]
    TokenOutsideVocabulary { token: TokenId, vocab_size: u32 },
}

/// Why the engine ended of itself. Nothing can be submitted any more; the process should exit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineFault {
    #[error("{0}")]
    Device(String),
    #[error("the engine broke one of its own rules: {0}")]
    Panic(String),
}

/// A running engine. It ends after [`EngineHandle::drain`] or [`EngineHandle::shutdown`], after a fault, or when its
/// last handle is gone and its live requests are done.
#[derive(Debug)]
pub struct Engine {
    pub handle: EngineHandle,
    thread: JoinHandle<Result<(), EngineFault>>,
}

impl Engine {
    /// Blocks until the engine thread has ended, and tells how. Gives up this engine's own handle first.
    ///
    /// # Errors
    /// The fault that ended it.
    pub fn join(self) -> Result<(), EngineFault> {
        drop(self.handle);
        let broken = || Err(EngineFault::Panic("its thread panicked outside the loop".into()));
        self.thread.join().unwrap_or_else(|_| broken())
    }
}

/// Starts the engine thread.
///
/// # Errors
/// Where the operating system refuses a thread.
///
/// # Panics
/// Where the executor's `max_in_flight` is 0.
pub fn spawn(scheduler: Scheduler, executor: Box<dyn Executor>, config: EngineConfig) -> io::Result<Engine> {
    assert!(executor.max_in_flight() > 0, "an executor must take at least one step at a time");
    let scores_prompts = executor.scores_prompts();
    let shared = Shared::new(config, scheduler.stats());
    let for_thread = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name("plimsoll-engine".into())
        .spawn(move || engine::supervise(scheduler, executor, &for_thread))?;
    let inner = HandleInner { shared, next_id: AtomicU64::new(0), scores_prompts };
    Ok(Engine { handle: EngineHandle { inner: Arc::new(inner) }, thread })
}

/// Submits requests to the engine and asks about it. Cheap to clone; no call blocks.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    inner: Arc<HandleInner>,
}

#[derive(Debug)]
struct HandleInner {
    shared: Arc<Shared>,
    next_id: AtomicU64,
    scores_prompts: bool,
}

impl Drop for HandleInner {
    fn drop(&mut self) {
        self.shared.advance(Phase::Draining);
    }
}

impl EngineHandle {
    /// An id that no other request of this engine has.
    pub fn next_request_id(&self) -> RequestId {
        RequestId(self.inner.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands a request to the engine. Its id comes from [`EngineHandle::next_request_id`].
    ///
    /// # Errors
    /// At once, where the engine is full, ending or dead, or a token id is outside the vocabulary.
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        let vocab_size = self.inner.shared.config().vocab_size;
        if let Some(token) = token_outside(&request, vocab_size) {
            return Err(SubmitError::TokenOutsideVocabulary { token, vocab_size });
        }
        self.inner.shared.submit(request)
    }

    /// Whether requests with `prompt_logprobs` can be served. Others are not to be submitted where not.
    pub fn scores_prompts(&self) -> bool {
        self.inner.scores_prompts
    }

    /// The engine as of now; cheap enough for every health check and scrape.
    pub fn stats(&self) -> EngineStats {
        self.inner.shared.stats()
    }

    /// Refuses new requests from now on, finishes the live ones, then ends the engine: [`EngineHandle::closed`].
    pub fn drain(&self) {
        self.inner.shared.advance(Phase::Draining);
    }

    /// Refuses new requests from now on, cancels the live ones, then ends the engine: [`EngineHandle::closed`].
    pub fn shutdown(&self) {
        self.inner.shared.advance(Phase::Stopping);
    }

    /// Waits until the engine has ended: at once after a fault, or when a drain or shutdown is complete. By then every
    /// stream has its end (unread events may remain in it).
    ///
    /// # Errors
    /// The fault that ended it.
    pub async fn closed(&self) -> Result<(), EngineFault> {
        let mut outcome = self.inner.shared.outcome();
        let ended = outcome.wait_for(Option::is_some).await.expect("this handle keeps the sender alive");
        ended.clone().expect("waited for it")
    }
}

/// The first token id of a request that the model does not have.
fn token_outside(request: &Request, vocab_size: u32) -> Option<TokenId> {
    let biased = request.sampling.logit_bias.iter().map(|(token, _)| token);
    let allowed = request.sampling.allowed_token_ids.iter().flatten();
    let mut ids = request.prompt.iter().chain(&request.stop.stop_token_ids).chain(biased).chain(allowed);
    ids.find(|&&token| token >= vocab_size).copied()
}
