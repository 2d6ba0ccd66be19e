//! One step under construction, and what is remembered of it until it is committed.

use plimsoll_core::{GroupTables, ScheduledSeq, SlotBinding, StepPlan, TokenInput};

use crate::kv_blocks::KvBlocks;
use crate::sequence::{SeqIndex, Sequence};

/// A step that was planned and not committed.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) step: u64,
    /// In the plan's order.
    pub(crate) rows: Vec<Row>,
}

/// One sequence's share of a flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) seq: SeqIndex,
    /// The sequence's epoch when the row was planned.
    pub(crate) epoch: u32,
    /// Its computed tokens after the step.
    pub(crate) end: u32,
    pub(crate) samples: bool,
    pub(crate) scores: bool,
}

/// Collects the rows of a step. Its buffers are reused from step to step.
#[derive(Debug, Default)]
pub(crate) struct StepBuilder {
    pub(crate) plan: StepPlan,
    pub(crate) rows: Vec<Row>,
    /// Input tokens that the step may still take.
    pub(crate) budget: u32,
    /// Some sequence lacked a block: nobody new may begin in this step.
    pub(crate) is_short_of_blocks: bool,
}

impl StepBuilder {
    /// Begins step number `step` in the buffers of `plan` and `rows`.
    pub(crate) fn new(mut plan: StepPlan, mut rows: Vec<Row>, step: u64, groups: usize, budget: u32) -> Self {
        plan.step = step;
        plan.bindings.clear();
        plan.seqs.clear();
        plan.tokens.clear();
        plan.tables.resize_with(groups, GroupTables::default);
        for table in &mut plan.tables {
            table.offsets.clear();
            table.offsets.push(0);
            table.first_block.clear();
            table.blocks.clear();
        }
        rows.clear();
        Self { plan, rows, budget, is_short_of_blocks: false }
    }

    /// Adds the next `len` pending tokens of `seq`, whose blocks cover them.
    pub(crate) fn push(&mut self, index: SeqIndex, seq: &mut Sequence, len: u32, kv: &KvBlocks) {
        assert!(len > 0 && len <= self.budget && len <= seq.pending(), "a row of {len} tokens");
        let slot = seq.slot.expect("a running sequence has a slot");
        let (start, end) = (seq.computed, seq.computed + len);
        let is_last = end == seq.promised();
        let input = match len == 1 && is_last && seq.sampled > 0 {
            true => TokenInput::LastSampled,
            false => TokenInput::Known,
        };
        match input {
            TokenInput::LastSampled => self.plan.tokens.push(0),
            TokenInput::Known => self.plan.tokens.extend_from_slice(&seq.tokens[start as usize..end as usize]),
        }
        let sample = is_last.then_some(seq.sampled);
        let scores = seq.to_score(start, end);
        self.plan.seqs.push(ScheduledSeq { slot, start, len, input, sample, scores });
        kv.write_rows(&seq.blocks, end, &mut self.plan.tables);
        self.rows.push(Row { seq: index, epoch: seq.epoch, end, samples: is_last, scores: scores.is_some() });

        self.budget -= len;
        seq.computed = end;
        seq.sampled += u32::from(is_last);
        seq.scored = scores.map_or(seq.scored, |span| span.to);
        seq.in_flight += 1;
        seq.last_step = Some(self.plan.step);
    }

    /// Has the executor tie the sequence's new slot to its request.
    pub(crate) fn bind(&mut self, seq: &Sequence) {
        let slot = seq.slot.expect("a slot was given");
        self.plan.bindings.push(SlotBinding { slot, request: seq.request.clone() });
    }
}
