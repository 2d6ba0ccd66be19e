//! A scheduler on a checked null device, driven as the engine drives it, with every invariant checked at every turn.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, HashMap, VecDeque};

use plimsoll_core::{
    CacheConfig, Executor, FinishReason, KvGroup, PromptLogprobs, Request, RequestId, SampleFault, SamplingParams,
    SeqSlot, StepPlan, StopConditions, Ticket, TokenEvent, TokenId,
};
use plimsoll_sched::{AddError, Policy, Scheduler, SchedulerConfig, WaitingLimits};
use plimsoll_sim::{CheckedExecutor, NullConfig, NullExecutor};

/// One full group of `num_blocks` blocks of 4 tokens, 4 sequences, 16 tokens a step.
pub(crate) fn config(num_blocks: u32) -> SchedulerConfig {
    SchedulerConfig {
        cache: CacheConfig { block_size: 4, groups: vec![KvGroup { window: None, num_blocks }] },
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 256,
        max_waiting: WaitingLimits { requests: 1000, prompt_tokens: 1 << 20 },
        policy: Policy::Fcfs,
        prefix_caching: true,
    }
}

/// A request whose prompt shares nothing with that of another id.
pub(crate) fn request(id: u64, prompt_len: u32, max_tokens: u32) -> Request {
    request_with((0..prompt_len).map(|at| id as u32 * 1000 + at).collect(), id, max_tokens)
}

pub(crate) fn request_with(prompt: Vec<TokenId>, id: u64, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        prompt,
        sampling: SamplingParams { seed: id, ..SamplingParams::default() },
        stop: StopConditions { max_tokens, min_tokens: 0, stop_token_ids: vec![] },
        priority: 0,
    }
}

/// One row of a plan, with the request's id in place of the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedRow {
    pub(crate) id: u64,
    pub(crate) start: u32,
    pub(crate) len: u32,
}

/// What came of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Story {
    pub(crate) cached_tokens: Option<u32>,
    pub(crate) prompt: Vec<PromptLogprobs>,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) fault: Option<SampleFault>,
}

impl Story {
    pub(crate) fn has_ended(&self) -> bool {
        self.finish.is_some() || self.fault.is_some()
    }
}

pub(crate) struct Harness {
    pub(crate) scheduler: Scheduler,
    executor: CheckedExecutor<NullExecutor>,
    in_flight: VecDeque<(Ticket, StepPlan)>,
    slots: HashMap<SeqSlot, u64>,
    pub(crate) stories: BTreeMap<u64, Story>,
    pub(crate) null: NullConfig,
}

impl Harness {
    pub(crate) fn new(config: SchedulerConfig) -> Self {
        Self::with_device(config, NullConfig::default())
    }

    /// As [`Harness::new`], on a device that takes two steps at once.
    pub(crate) fn overlapped(config: SchedulerConfig) -> Self {
        Self::with_device(config, NullConfig { max_in_flight: 2, ..NullConfig::default() })
    }

    pub(crate) fn with_device(config: SchedulerConfig, null: NullConfig) -> Self {
        let inner = NullExecutor::new(null.clone());
        let executor = CheckedExecutor::new(inner, &config.cache, config.max_num_seqs, config.max_num_batched_tokens);
        Self {
            scheduler: Scheduler::new(config).expect("a valid configuration"),
            executor,
            in_flight: VecDeque::new(),
            slots: HashMap::new(),
            stories: BTreeMap::new(),
            null,
        }
    }

    pub(crate) fn try_add(&mut self, request: Request) -> Result<(), AddError> {
        let id = request.id.0;
        self.scheduler.add(request)?;
        self.stories.insert(id, Story::default());
        Ok(())
    }

    pub(crate) fn add(&mut self, request: Request) {
        self.try_add(request).expect("the request fits");
    }

    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        let was_live = self.scheduler.cancel(RequestId(id));
        self.scheduler.check_integrity();
        was_live
    }

    /// Plans and submits a step if there is anything to plan, and commits the oldest one if the device is full or
    /// nothing could be planned. Returns the rows of the step that was planned.
    pub(crate) fn turn(&mut self) -> Vec<PlannedRow> {
        let rows = self.plan();
        if rows.is_empty() || self.in_flight.len() == self.executor.max_in_flight() {
            self.commit();
        }
        rows
    }

    /// Plans and submits a step; empty if there is nothing to plan.
    pub(crate) fn plan(&mut self) -> Vec<PlannedRow> {
        let Some(plan) = self.scheduler.plan() else { return Vec::new() };
        self.scheduler.check_integrity();
        for binding in &plan.bindings {
            self.slots.insert(binding.slot, binding.request.id.0);
        }
        let row = |seq: &plimsoll_core::ScheduledSeq| PlannedRow {
            id: self.slots[&seq.slot],
            start: seq.start,
            len: seq.len,
        };
        let rows = plan.seqs.iter().map(row).collect();
        let ticket = self.executor.submit(&plan).expect("the null device does not fail");
        self.in_flight.push_back((ticket, plan));
        rows
    }

    /// Commits the oldest step in flight, if there is one.
    pub(crate) fn commit(&mut self) {
        let Some((ticket, plan)) = self.in_flight.pop_front() else { return };
        let output = self.executor.wait(ticket).expect("the null device does not fail");
        let events = self.scheduler.commit(output);
        self.scheduler.recycle(plan);
        self.scheduler.check_integrity();
        events.into_iter().for_each(|(id, event)| self.record(id.0, event));
    }

    fn record(&mut self, id: u64, event: TokenEvent) {
        let story = self.stories.get_mut(&id).expect("news of a request that was added");
        assert!(!story.has_ended(), "request {id} got news after its end");
        match event {
            TokenEvent::Scheduled { cached_tokens } => {
                assert!(story.tokens.is_empty(), "request {id} was scheduled after its first token");
                assert_eq!(story.cached_tokens.replace(cached_tokens), None, "request {id} was scheduled twice");
            }
            TokenEvent::Prompt(logprobs) => {
                assert!(story.cached_tokens.is_some() && story.tokens.is_empty(), "request {id}: scores out of order");
                story.prompt.extend(logprobs);
            }
            TokenEvent::Token { token, finish, .. } => {
                assert!(story.cached_tokens.is_some(), "request {id} got a token before it was scheduled");
                story.tokens.push(token);
                story.finish = finish;
            }
            TokenEvent::Failed(fault) => story.fault = Some(fault),
        }
    }

    /// Runs until every request has ended; panics if that takes more than `max_turns`. Returns all planned rows, a
    /// step each.
    pub(crate) fn run(&mut self, max_turns: usize) -> Vec<Vec<PlannedRow>> {
        let mut steps = Vec::new();
        for _ in 0..max_turns {
            if self.scheduler.is_idle() {
                return steps;
            }
            let rows = self.turn();
            if !rows.is_empty() {
                steps.push(rows);
            }
        }
        panic!("requests are left after {max_turns} turns: {:?}", self.scheduler.stats());
    }

    /// Asserts that a request got what it would have got alone, on a device without a scheduler.
    pub(crate) fn assert_as_alone(&self, request: &Request) {
        let max_model_len = self.scheduler.config().max_model_len;
        assert_eq!(
            self.stories[&request.id.0],
            alone(request, max_model_len, &self.null, &self.stories[&request.id.0])
        );
    }
}

/// The story that follows from the null device's tokens; only `cached_tokens` is taken from `seen`.
fn alone(request: &Request, max_model_len: u32, null: &NullConfig, seen: &Story) -> Story {
    let max_tokens = request.stop.max_tokens.min(max_model_len - request.prompt.len() as u32);
    let mut story = Story { cached_tokens: seen.cached_tokens, ..Story::default() };
    if request.sampling.prompt_logprobs.is_some() {
        let scores = (1..request.prompt.len()).map(|at| NullExecutor::prompt_logprobs(null, request, at as u32));
        story.prompt = scores.collect();
    }
    for index in 0..max_tokens {
        match NullExecutor::token(null, request, index) {
            Err(fault) => {
                story.fault = Some(fault);
                return story;
            }
            Ok(token) => story.tokens.push(token),
        }
        if index >= request.stop.min_tokens && request.stop.stop_token_ids.contains(&story.tokens[index as usize]) {
            story.finish = Some(FinishReason::Stop);
            return story;
        }
    }
    story.finish = Some(FinishReason::Length);
    story
}

pub(crate) fn row(id: u64, start: u32, len: u32) -> PlannedRow {
    PlannedRow { id, start, len }
}

/// The order in which requests had their first row.
pub(crate) fn order_of_begin(steps: &[Vec<PlannedRow>]) -> Vec<u64> {
    let mut order = Vec::new();
    for row in steps.iter().flatten() {
        if !order.contains(&row.id) {
            order.push(row.id);
        }
    }
    order
}
