//! Planning a step: decodes, then prefills in progress, then whoever may begin.

use plimsoll_core::StepPlan;

use super::Scheduler;
use crate::sequence::{SeqIndex, State};
use crate::step::{Flight, StepBuilder};

impl Scheduler {
    /// The next step, or `None` if there is nothing to do now: no request, or none that can go on before a step in
    /// flight is committed. May be called again before the last plan is committed.
    pub fn plan(&mut self) -> Option<StepPlan> {
        if self.running.is_empty() && self.waiting.is_empty() {
            return None;
        }
        let mut step = StepBuilder::new(
            self.spare_plans.pop().unwrap_or_default(),
            self.spare_rows.pop().unwrap_or_default(),
            self.counters.steps,
            self.config.cache.groups.len(),
            self.config.max_num_batched_tokens,
        );
        self.plan_decodes(&mut step);
        self.plan_prefills(&mut step);
        self.begin_waiting(&mut step);
        self.kv.check_sums();
        self.finish(step)
    }

    /// Sequences with a single pending token. First, so that no prefill can starve them of budget or blocks.
    fn plan_decodes(&mut self, step: &mut StepBuilder) {
        let mut at = 0;
        while at < self.running.len() {
            if self.seqs[self.running[at]].pending() == 1 {
                self.plan_running(at, step);
            }
            at += 1;
        }
    }

    /// Sequences with more pending tokens, each as far as the budget goes.
    fn plan_prefills(&mut self, step: &mut StepBuilder) {
        if self.running.len() == step.rows.len() {
            return;
        }
        let mut at = 0;
        while at < self.running.len() && step.budget > 0 {
            let seq = &self.seqs[self.running[at]];
            if seq.pending() > 1 && seq.last_step != Some(step.plan.step) {
                self.plan_running(at, step);
            }
            at += 1;
        }
    }

    /// Adds the running sequence at place `at` to the step. If a pool has run dry it takes blocks from the last in
    /// line; if none of those can give any, it sits this step out with its blocks.
    fn plan_running(&mut self, at: usize, step: &mut StepBuilder) {
        let index = self.running[at];
        let mut len = self.affordable(index, step.budget);
        while len == 0 && self.preempt_after(at, step) {
            len = self.affordable(index, step.budget);
        }
        if len == 0 {
            step.is_short_of_blocks = true;
            return;
        }
        let seq = &mut self.seqs[index];
        self.kv.grow(&mut seq.blocks, seq.computed + len);
        step.push(index, seq, len, &self.kv);
    }

    /// How many pending tokens of a running sequence budget and blocks allow. A prefill leaves one block in each pool
    /// for every other running sequence, so that it does not drive out those who grow by a token a step.
    fn affordable(&self, index: SeqIndex, budget: u32) -> u32 {
        let seq = &self.seqs[index];
        let pending = seq.pending();
        let reserve = if pending == 1 { 0 } else { self.running.len() as u32 - 1 };
        let reach = self.kv.reach(&seq.blocks, reserve);
        let room = reach.saturating_sub(u64::from(seq.computed));
        pending.min(budget).min(u32::try_from(room).unwrap_or(u32::MAX))
    }

    /// Preempts the last running sequence after place `at` that is not in this step.
    fn preempt_after(&mut self, at: usize, step: &StepBuilder) -> bool {
        let can_give = |&index: &SeqIndex| self.seqs[index].last_step != Some(step.plan.step);
        let Some(offset) = self.running[at + 1..].iter().rposition(can_give) else { return false };
        let victim = self.running.remove(at + 1 + offset);
        let seq = &mut self.seqs[victim];
        self.kv.release(&mut seq.blocks);
        seq.computed = 0;
        seq.epoch += 1;
        seq.state = State::Waiting;
        self.waiting.insert(victim, &self.seqs[victim]);
        self.counters.preemptions += 1;
        true
    }

    /// Lets waiting sequences begin, in order, while budget, slots and blocks last. The first that cannot begin holds
    /// up the others: nobody overtakes by being small.
    fn begin_waiting(&mut self, step: &mut StepBuilder) {
        while step.budget > 0 && !step.is_short_of_blocks {
            let Some(index) = self.waiting.first() else { return };
            if !self.try_begin(index, step) {
                return;
            }
            let at = self.running_position(index).expect_err("a waiting sequence is not in the list");
            self.running.insert(at, index);
            self.plan_running(at, step);
        }
    }

    /// Gives a waiting sequence a slot and its first blocks; one block a running sequence stays in each pool.
    fn try_begin(&mut self, index: SeqIndex, step: &mut StepBuilder) -> bool {
        let seq = &mut self.seqs[index];
        // A preempted sequence whose last token is still in flight does not know all of its tokens yet, or even
        // whether it goes on.
        if seq.in_flight > 0 || (seq.slot.is_none() && self.free_slots.is_empty()) {
            return false;
        }
        let reserve = self.running.len() as u32;
        let cacheable = seq.cacheable();
        let Some(cached) = self.kv.try_begin(&mut seq.blocks, &seq.tokens, cacheable, reserve) else { return false };
        self.waiting.remove(seq);
        seq.state = State::Running;
        seq.computed = cached;
        if seq.slot.is_none() {
            seq.slot = self.free_slots.pop();
            step.bind(seq);
            self.begun.push((seq.id(), cached));
            if self.config.prefix_caching && cacheable > 0 {
                self.counters.prefix_queried_tokens += u64::from(seq.prompt_len);
                self.counters.prefix_hit_tokens += u64::from(cached);
            }
        }
        true
    }

    fn finish(&mut self, step: StepBuilder) -> Option<StepPlan> {
        let StepBuilder { plan, rows, budget, .. } = step;
        if rows.is_empty() {
            assert!(!self.in_flight.is_empty(), "work is left, nothing is in flight, and nothing can be planned");
            assert!(plan.bindings.is_empty(), "a slot was bound for a sequence that did not run");
            self.spare_rows.push(rows);
            self.recycle(plan);
            return None;
        }
        let tokens = self.config.max_num_batched_tokens - budget;
        assert_eq!(plan.num_tokens(), tokens as usize, "tokens of the plan and budget taken");
        assert!(rows.len() <= self.config.max_num_seqs as usize, "more rows than slots");
        self.counters.scheduled_tokens += u64::from(tokens);
        self.counters.steps += 1;
        self.in_flight.push_back(Flight { step: plan.step, rows });
        Some(plan)
    }
}
