//! The state machine. `plan` stands in `plan.rs`, `commit` in `commit.rs`, the full self-check in `integrity.rs`.

mod commit;
mod integrity;
mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use plimsoll_core::{Request, RequestId, SeqSlot, StepPlan};

use crate::kv_blocks::{KvBlocks, NeverFits};
use crate::sequence::{SeqIndex, SeqStore, Sequence, State};
use crate::step::{Flight, Row};
use crate::waiting::WaitingQueue;
use crate::{AddError, ConfigError, SchedulerConfig, SchedulerStats};

/// Decides what runs in each step. See the crate's documentation for its rules.
///
/// ```
/// # use plimsoll_core::*;
/// # use plimsoll_sched::*;
/// # let config = SchedulerConfig {
/// #     cache: CacheConfig { block_size: 4, groups: vec![KvGroup { window: None, num_blocks: 8 }] },
/// #     max_num_seqs: 2, max_num_batched_tokens: 8, max_model_len: 32,
/// #     max_waiting: WaitingLimits { requests: 4, prompt_tokens: 64 }, policy: Policy::Fcfs, prefix_caching: true,
/// # };
/// # let stop = StopConditions { max_tokens: 1, min_tokens: 0, stop_token_ids: vec![] };
/// # let request = Request { id: RequestId(1), prompt: vec![7, 8], sampling: SamplingParams::default(), stop, priority: 0 };
/// let mut scheduler = Scheduler::new(config)?;
/// scheduler.add(request)?;
/// let plan = scheduler.plan().expect("there is work");
/// assert_eq!(plan.tokens, [7, 8]);
/// // A device runs the plan and samples token 9.
/// let sampled = Sampled { slot: plan.seqs[0].slot, token: Ok(9), logprobs: None };
/// let events = scheduler.commit(StepOutput { step: plan.step, samples: vec![sampled], scores: vec![] });
/// assert_eq!(events.len(), 2); // Scheduled, and the token with its finish reason.
/// assert_eq!(scheduler.plan(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    kv: KvBlocks,
    seqs: SeqStore,
    by_id: BTreeMap<RequestId, SeqIndex>,
    waiting: WaitingQueue,
    /// By running rank: who stands earlier may take blocks from who stands later.
    running: Vec<SeqIndex>,
    free_slots: Vec<SeqSlot>,
    in_flight: VecDeque<Flight>,
    /// Sequences that began since the last commit, and their cached tokens.
    begun: Vec<(RequestId, u32)>,
    arrivals: u64,
    counters: Counters,
    spare_plans: Vec<StepPlan>,
    spare_rows: Vec<Vec<Row>>,
}

#[derive(Debug, Default)]
struct Counters {
    steps: u64,
    scheduled_tokens: u64,
    generated_tokens: u64,
    preemptions: u64,
    prefix_queried_tokens: u64,
    prefix_hit_tokens: u64,
}

impl Scheduler {
    /// A scheduler over an empty KV cache.
    ///
    /// # Errors
    /// A configuration that cannot work; the message says what to change.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            kv: KvBlocks::new(&config.cache, config.prefix_caching),
            seqs: SeqStore::default(),
            by_id: BTreeMap::new(),
            waiting: WaitingQueue::new(config.max_waiting),
            running: Vec::with_capacity(config.max_num_seqs as usize),
            free_slots: (0..config.max_num_seqs).rev().map(SeqSlot).collect(),
            in_flight: VecDeque::new(),
            begun: Vec::new(),
            arrivals: 0,
            counters: Counters::default(),
            spare_plans: Vec::new(),
            spare_rows: Vec::new(),
            config,
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    /// Requests that could never finish are refused, and so are those for which the queue has no room.
    pub fn add(&mut self, request: Request) -> Result<(), AddError> {
        let max_sampled = self.check_request(&request)?;
        let step = self.counters.steps;
        let arrival = self.arrivals;
        self.arrivals += 1;
        let seq = Sequence {
            state: State::Waiting,
            slot: None,
            prompt_len: request.prompt.len() as u32,
            tokens: request.prompt.clone(),
            blocks: self.kv.nothing(),
            computed: 0,
            sampled: 0,
            scored: 0,
            max_sampled,
            in_flight: 0,
            epoch: 0,
            last_step: None,
            waiting_rank: (self.config.policy.waiting_rank(&request, step), arrival),
            running_rank: (self.config.policy.running_rank(&request), arrival),
            request: Arc::new(request),
        };
        let id = seq.id();
        let index = self.seqs.insert(seq);
        self.waiting.insert(index, &self.seqs[index]);
        self.by_id.insert(id, index);
        Ok(())
    }

    /// Ends a request without a further event; `false` if it is unknown or has ended already. Its blocks and its slot
    /// are free at once, or with the commit of its last step in flight.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let Some(&index) = self.by_id.get(&id) else { return false };
        match self.seqs[index].state {
            State::Ended => return false,
            State::Waiting => self.waiting.remove(&self.seqs[index]),
            State::Running => {
                let at = self.running_position(index).expect("a running sequence is in the list");
                self.running.remove(at);
            }
        }
        self.seqs[index].state = State::Ended;
        self.release_if_landed(index);
        true
    }

    /// Hands a plan's buffers back for reuse, once its step was waited for. Optional.
    pub fn recycle(&mut self, plan: StepPlan) {
        /// More than are ever in flight are not worth keeping.
        const MAX_SPARE: usize = 4;
        if self.spare_plans.len() < MAX_SPARE {
            self.spare_plans.push(plan);
        }
    }

    /// Whether every request has ended and every step is committed.
    pub fn is_idle(&self) -> bool {
        self.by_id.is_empty() && self.in_flight.is_empty()
    }

    /// Steps planned and not committed.
    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// What it was made with.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// Gauges and counters as of now.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            waiting: self.waiting.num_new(),
            waiting_prompt_tokens: self.waiting.new_prompt_tokens(),
            running: self.running.len() as u32,
            preempted: self.waiting.num_preempted(),
            steps_in_flight: self.in_flight.len() as u32,
            blocks: self.kv.usage(),
            steps: self.counters.steps,
            scheduled_tokens: self.counters.scheduled_tokens,
            generated_tokens: self.counters.generated_tokens,
            preemptions: self.counters.preemptions,
            prefix_queried_tokens: self.counters.prefix_queried_tokens,
            prefix_hit_tokens: self.counters.prefix_hit_tokens,
        }
    }

    /// Whether the request can be taken; if so, how many tokens it may generate.
    fn check_request(&self, request: &Request) -> Result<u32, AddError> {
        let max_model_len = self.config.max_model_len;
        let prompt = request.prompt.len();
        if prompt == 0 {
            return Err(AddError::EmptyPrompt);
        }
        if request.stop.max_tokens == 0 {
            return Err(AddError::ZeroMaxTokens);
        }
        if prompt >= max_model_len as usize {
            return Err(AddError::TooLong { prompt, max_model_len });
        }
        if self.by_id.contains_key(&request.id) {
            return Err(AddError::DuplicateId(request.id));
        }
        let prompt_len = prompt as u32;
        let max_sampled = request.stop.max_tokens.min(max_model_len - prompt_len);
        // The last token is sampled and never computed.
        let tokens = prompt_len + max_sampled;
        self.kv.check_fits(tokens - 1).map_err(|NeverFits { group, needed, total }| AddError::TooLargeForCache {
            tokens,
            group,
            needed,
            total,
        })?;
        if !self.waiting.has_room(prompt) {
            return Err(AddError::QueueFull {
                requests: self.waiting.num_new(),
                tokens: self.waiting.new_prompt_tokens(),
            });
        }
        Ok(max_sampled)
    }

    fn running_position(&self, index: SeqIndex) -> Result<usize, usize> {
        let rank = self.seqs[index].running_rank;
        self.running.binary_search_by_key(&rank, |&other| self.seqs[other].running_rank)
    }

    /// Takes blocks, slot and entry of an ended sequence back, unless a step in flight still uses them.
    fn release_if_landed(&mut self, index: SeqIndex) {
        let seq = &mut self.seqs[index];
        assert_eq!(seq.state, State::Ended, "only what has ended is released");
        if seq.in_flight > 0 {
            return;
        }
        self.kv.release(&mut seq.blocks);
        let seq = self.seqs.remove(index);
        self.free_slots.extend(seq.slot);
        self.by_id.remove(&seq.id());
    }
}
