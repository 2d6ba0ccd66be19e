//! A small engine for tests, and executors whose every token is known in advance.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use plimsoll_core::{
    CacheConfig, Executor, ExecutorError, FinishReason, KvGroup, Request, RequestId, SampleFault, Sampled,
    SamplingParams, StepOutput, StepPlan, StopConditions, Ticket, TokenEvent, TokenId,
};
use plimsoll_engine::{Engine, EngineConfig, EngineHandle, EngineStats, EventStream, spawn};
use plimsoll_sched::{Policy, Scheduler, SchedulerConfig, WaitingLimits};

/// Any seed at or above this makes the executor report a fault instead of the second token.
pub(crate) const FAULTY_SEED: u64 = 1 << 40;

pub(crate) fn scheduler(max_num_seqs: u32, num_blocks: u32) -> Scheduler {
    Scheduler::new(scheduler_config(max_num_seqs, num_blocks)).expect("a valid configuration")
}

pub(crate) fn scheduler_config(max_num_seqs: u32, num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        cache: CacheConfig { block_size: 4, groups: vec![KvGroup { window: None, num_blocks }] },
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs.max(64),
        max_model_len: 10_000,
        max_waiting: WaitingLimits { requests: 100_000, prompt_tokens: 1 << 40 },
        policy: Policy::Fcfs,
        prefix_caching: false,
    }
}

pub(crate) fn start(executor: impl Executor + 'static, config: EngineConfig) -> Engine {
    spawn(scheduler(8, 10_000), Box::new(executor), config).expect("a thread")
}

/// A request whose tokens are [`expected_tokens`] of its seed.
pub(crate) fn request(id: RequestId, seed: u64, prompt_tokens: usize, max_tokens: u32) -> Request {
    Request {
        id,
        prompt: (0..prompt_tokens as u32).map(|i| i % 1000).collect(),
        sampling: SamplingParams { seed, ..SamplingParams::default() },
        stop: StopConditions { max_tokens, min_tokens: 0, stop_token_ids: Vec::new() },
        priority: 0,
    }
}

pub(crate) fn submit(handle: &EngineHandle, seed: u64, prompt_tokens: usize, max_tokens: u32) -> EventStream {
    handle.submit(request(handle.next_request_id(), seed, prompt_tokens, max_tokens)).expect("the engine has room")
}

pub(crate) fn token(seed: u64, index: u32) -> TokenId {
    ((seed * 7919 + u64::from(index) * 31) % 1000) as TokenId
}

pub(crate) fn expected_tokens(seed: u64, count: u32) -> Vec<TokenId> {
    (0..count).map(|index| token(seed, index)).collect()
}

/// Reads a stream to its end.
pub(crate) fn read_all(stream: &mut EventStream) -> Vec<TokenEvent> {
    std::iter::from_fn(|| stream.blocking_recv()).map(|timed| timed.event).collect()
}

pub(crate) fn tokens_of(events: &[TokenEvent]) -> Vec<TokenId> {
    let token = |event: &TokenEvent| match event {
        TokenEvent::Token { token, .. } => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

pub(crate) fn finish_of(events: &[TokenEvent]) -> Option<FinishReason> {
    match events.last() {
        Some(TokenEvent::Token { finish, .. }) => *finish,
        _ => None,
    }
}

/// Waits until the engine's stats satisfy `is_so`; fails where they do not for a minute.
pub(crate) fn wait_for(handle: &EngineHandle, what: &str, is_so: impl Fn(&EngineStats) -> bool) -> EngineStats {
    let since = Instant::now();
    loop {
        let stats = handle.stats();
        if is_so(&stats) {
            return stats;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "no sign of: {what}; {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs steps at once; token number `i` of a request with seed `s` is [`token`]`(s, i)`.
#[derive(Default)]
pub(crate) struct SeedExecutor {
    slots: Vec<Option<Arc<Request>>>,
    done: VecDeque<StepOutput>,
    depth: usize,
}

impl SeedExecutor {
    pub(crate) fn lockstep() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    /// Takes a second step before the first was waited for.
    pub(crate) fn overlapped() -> Self {
        Self { depth: 2, ..Self::default() }
    }

    fn run(&mut self, plan: &StepPlan) -> StepOutput {
        for binding in &plan.bindings {
            let slot = binding.slot.0 as usize;
            self.slots.resize(self.slots.len().max(slot + 1), None);
            self.slots[slot] = Some(Arc::clone(&binding.request));
        }
        let sample = |seq: &plimsoll_core::ScheduledSeq| {
            let index = seq.sample?;
            let seed = self.slots[seq.slot.0 as usize].as_ref().expect("bound before it runs").sampling.seed;
            let is_faulty = seed >= FAULTY_SEED && index == 1;
            let token = if is_faulty { Err(SampleFault::NonFiniteLogits) } else { Ok(token(seed, index)) };
            Some(Sampled { slot: seq.slot, token, logprobs: None })
        };
        StepOutput { step: plan.step, samples: plan.seqs.iter().filter_map(sample).collect(), scores: Vec::new() }
    }
}

impl Executor for SeedExecutor {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        assert!(self.done.len() < self.depth, "submitted beyond max_in_flight");
        let output = self.run(plan);
        self.done.push_back(output);
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let output = self.done.pop_front().expect("a step is in flight");
        assert_eq!(output.step, ticket.0, "waited for out of order");
        Ok(output)
    }

    fn max_in_flight(&self) -> usize {
        self.depth
    }
}

/// Ends a step only when told to; freely once the other end of the gate is gone.
pub(crate) struct GatedExecutor<E> {
    pub(crate) inner: E,
    pub(crate) gate: Receiver<()>,
}

impl<E: Executor> Executor for GatedExecutor<E> {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        self.inner.submit(plan)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let _ = self.gate.recv();
        self.inner.wait(ticket)
    }

    fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight()
    }
}

/// Breaks in its `at`-th step (from 0).
pub(crate) struct BreakingExecutor {
    pub(crate) inner: SeedExecutor,
    pub(crate) at: u64,
    pub(crate) by_panic: bool,
}

impl Executor for BreakingExecutor {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        if self.at == 0 {
            assert!(!self.by_panic, "the executor's invariant");
            return Err(ExecutorError("the cable is out".into()));
        }
        self.at -= 1;
        self.inner.submit(plan)
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        self.inner.wait(ticket)
    }
}

/// KV blocks that sequences hold.
pub(crate) fn blocks_used(stats: &EngineStats) -> u32 {
    stats.scheduler.blocks.iter().map(|blocks| blocks.used).sum()
}
