//! Verifies plans as a device would, if it could tell a wrong block from a right one.

use std::collections::VecDeque;
use std::sync::Arc;

use plimsoll_core::{
    CacheConfig, Executor, ExecutorError, Request, ScheduledSeq, SlotBinding, StepOutput, StepPlan, Ticket, TokenInput,
};

use crate::shadow::{History, ShadowGroup, TableRow};

/// Wraps an executor and panics on the first plan that breaks the contract between scheduler and device: an unbound or
/// doubled slot, a wrong token, a gap in what was computed, a table too short, a block written by two sequences in one
/// step, or any position within a query's window that does not hold just that sequence's own past.
///
/// The inner executor's steps run at once, so that each sampled token is known; plans may still overlap.
#[derive(Debug)]
pub struct CheckedExecutor<E> {
    inner: E,
    groups: Vec<ShadowGroup>,
    slots: Vec<Option<Slot>>,
    max_num_batched_tokens: usize,
    next_step: u64,
    done: VecDeque<StepOutput>,
}

#[derive(Debug)]
struct Slot {
    request: Arc<Request>,
    history: History,
    sampled: u32,
    /// Leading prompt tokens that were scored, with the first, which never is.
    scored: u32,
    /// The last step that it was part of.
    last_step: Option<u64>,
}

impl<E: Executor> CheckedExecutor<E> {
    pub fn new(inner: E, cache: &CacheConfig, max_num_seqs: u32, max_num_batched_tokens: u32) -> Self {
        Self {
            inner,
            groups: ShadowGroup::all(cache),
            slots: (0..max_num_seqs).map(|_| None).collect(),
            max_num_batched_tokens: max_num_batched_tokens as usize,
            next_step: 0,
            done: VecDeque::new(),
        }
    }

    fn bind(&mut self, binding: &SlotBinding) {
        let mut history = History::default();
        binding.request.prompt.iter().for_each(|&token| history.push(token));
        let slot = Slot { request: Arc::clone(&binding.request), history, sampled: 0, scored: 1, last_step: None };
        self.slots[binding.slot.0 as usize] = Some(slot);
    }

    /// Checks the shape of a plan, which needs no knowledge of the past.
    fn check_shape(&self, plan: &StepPlan) {
        assert_eq!(plan.step, self.next_step, "steps count up by one");
        let tokens: u32 = plan.seqs.iter().map(|seq| seq.len).sum();
        assert_eq!(tokens as usize, plan.num_tokens(), "packed tokens and lengths of rows");
        assert!(tokens as usize <= self.max_num_batched_tokens, "{tokens} tokens are over the budget");
        assert!(!plan.seqs.is_empty(), "an empty step");
        assert_eq!(plan.tables.len(), self.groups.len(), "one table a KV group");
        for table in &plan.tables {
            assert_eq!(table.offsets.len(), plan.seqs.len() + 1, "offsets of block tables");
            assert_eq!(table.first_block.len(), plan.seqs.len(), "first blocks of block tables");
            let (first, last) = (table.offsets[0], table.offsets[plan.seqs.len()]);
            assert_eq!((first, last as usize), (0, table.blocks.len()), "the rows cover all blocks");
        }
    }

    /// Checks one row's slot, place and input against the slot's history.
    fn check_row(&mut self, seq: &ScheduledSeq, tokens: &[u32], step: u64) {
        let slot = self.slots[seq.slot.0 as usize].as_mut().unwrap_or_else(|| panic!("{:?} is not bound", seq.slot));
        let id = slot.request.id.0;
        assert!(seq.len > 0, "request {id}: an empty row");
        assert_ne!(slot.last_step.replace(step), Some(step), "request {id} is in step {step} twice");
        let end = seq.start + seq.len;
        assert!(end <= slot.history.len(), "request {id}: input past what was sampled");
        match seq.input {
            TokenInput::LastSampled => {
                assert_eq!((seq.len, tokens), (1, [0].as_slice()), "request {id}: one placeholder");
                assert!(slot.sampled > 0 && end == slot.history.len(), "request {id}: the last sampled token");
            }
            TokenInput::Known => {
                let expected = slot.history.entries(seq.start, end).iter().map(|entry| &entry.token);
                assert!(tokens.iter().eq(expected), "request {id}: wrong input tokens at {}", seq.start);
            }
        }
        let expected = (end == slot.history.len()).then_some(slot.sampled);
        assert_eq!(seq.sample, expected, "request {id}: samples after its last token, and only there");
        if let Some(span) = seq.scores {
            assert!(slot.request.sampling.prompt_logprobs.is_some(), "request {id} wants no scores");
            assert_eq!(span.from, slot.scored, "request {id}: prompt tokens are scored once, in order");
            assert!(span.from < span.to, "request {id}: an empty span of scores");
            assert!(seq.start < span.from && span.to <= end + 1, "request {id}: scores of what is not computed");
            assert!(span.to as usize <= slot.request.prompt.len(), "request {id}: scores past its prompt");
            slot.scored = span.to;
        }
        let is_scored =
            slot.request.sampling.prompt_logprobs.is_none() || slot.scored as usize == slot.request.prompt.len();
        assert!(is_scored || seq.sample.is_none(), "request {id} samples before its prompt is scored");
    }

    /// All writes come first: within a step no order among rows may be relied on.
    fn check_blocks(&mut self, plan: &StepPlan) {
        for (group, tables) in self.groups.iter_mut().zip(&plan.tables) {
            let rows = || plan.seqs.iter().enumerate();
            let table = |row| {
                let (first, blocks) = tables.row(row);
                TableRow { first, blocks }
            };
            let history = |seq: &ScheduledSeq| &self.slots[seq.slot.0 as usize].as_ref().expect("is bound").history;
            for (row, seq) in rows() {
                let new = history(seq).entries(seq.start, seq.start + seq.len);
                group.write(table(row), new, plan.step, row);
            }
            for (row, seq) in rows() {
                let from = group.window.map_or(0, |window| (seq.start + 1).saturating_sub(window));
                let seen = history(seq).entries(from, seq.start + seq.len);
                group.read(table(row), seen, plan.step, row);
            }
        }
    }

    /// Appends what the step sampled. A fault leaves a token that nothing may depend on.
    fn extend_histories(&mut self, output: &StepOutput) {
        for sample in &output.samples {
            let slot = self.slots[sample.slot.0 as usize].as_mut().expect("is bound");
            slot.history.push(sample.token.unwrap_or(0));
            slot.sampled += 1;
        }
    }
}

impl<E: Executor> Executor for CheckedExecutor<E> {
    fn submit(&mut self, plan: &StepPlan) -> Result<Ticket, ExecutorError> {
        self.check_shape(plan);
        self.next_step += 1;
        plan.bindings.iter().for_each(|binding| self.bind(binding));
        let mut tokens = plan.tokens.as_slice();
        for seq in &plan.seqs {
            let (own, rest) = tokens.split_at(seq.len as usize);
            self.check_row(seq, own, plan.step);
            tokens = rest;
        }
        self.check_blocks(plan);
        let ticket = self.inner.submit(plan)?;
        let output = self.inner.wait(ticket)?;
        self.extend_histories(&output);
        self.done.push_back(output);
        assert!(self.done.len() <= self.inner.max_in_flight(), "more steps in flight than the device takes");
        Ok(Ticket(plan.step))
    }

    fn wait(&mut self, ticket: Ticket) -> Result<StepOutput, ExecutorError> {
        let output = self.done.pop_front().ok_or_else(|| ExecutorError("nothing was submitted".to_owned()))?;
        assert_eq!(output.step, ticket.0, "steps are waited for in order");
        Ok(output)
    }

    fn max_in_flight(&self) -> usize {
        self.inner.max_in_flight()
    }
}

#[cfg(test)]
mod tests;
