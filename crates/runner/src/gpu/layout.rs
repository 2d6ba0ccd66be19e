//! How a step's indices lie in one buffer of words, so that they reach the GPU in few copies, and at fixed places where
//! the step is a captured one.

use std::ops::Range;

use candle_core::{Result, Tensor};
use plimsoll_nn::{ForwardBatch, StepTensors};
use plimsoll_ops::attention::{GpuPlan, GpuShape, PagedTensors, PlanSize};

/// Regions start at multiples of as many words: 256 bytes.
const ALIGNMENT: usize = 64;

/// A slot that nothing is written to, a row that nothing is read from.
pub(super) const NONE: u32 = u32::MAX;

/// Memory of the GPU that all steps use, one after the other.
pub(super) struct SharedTensors {
    /// u32 `[slots]`: what each slot sampled last.
    pub(super) last_tokens: Tensor,
    /// f32 `[sequences, vocab]`.
    pub(super) logits: Tensor,
    /// bf16, for the activations of small captured steps.
    pub(super) arena: Tensor,
    /// f32, for the attention's parts.
    pub(super) workspace: Tensor,
    /// Each KV group's attention.
    pub(super) shapes: Vec<GpuShape>,
}

/// How much a step has, or at most may have, of everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StepSizes {
    pub(super) tokens: usize,
    pub(super) logit_rows: usize,
    /// Of each KV group.
    pub(super) groups: Vec<GroupSizes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GroupSizes {
    /// Entries of all block tables together.
    pub(super) blocks: usize,
    pub(super) plan: PlanSize,
}

/// Where each array lies.
#[derive(Clone, Debug)]
pub(super) struct StepLayout {
    num_tokens: Range<usize>,
    input_ids: Range<usize>,
    positions: Range<usize>,
    logit_rows: Range<usize>,
    groups: Vec<GroupLayout>,
    /// All but the block tables.
    fixed: Range<usize>,
    words: usize,
}

#[derive(Clone, Debug)]
struct GroupLayout {
    slot_mapping: Range<usize>,
    plan: Range<usize>,
    plan_size: PlanSize,
    blocks: Range<usize>,
}

impl StepLayout {
    pub(super) fn new(sizes: &StepSizes) -> Self {
        let mut end = 0;
        let mut region = |len: usize| {
            let start = end;
            end = (start + len).next_multiple_of(ALIGNMENT);
            start..start + len
        };
        let num_tokens = region(1);
        let (input_ids, positions) = (region(sizes.tokens), region(sizes.tokens));
        let logit_rows = region(sizes.logit_rows);
        let mut groups: Vec<GroupLayout> = sizes
            .groups
            .iter()
            .map(|group| GroupLayout {
                slot_mapping: region(sizes.tokens),
                plan: region(group.plan.words()),
                plan_size: group.plan,
                blocks: 0..0,
            })
            .collect();
        // Last, since of a captured step's tables only what is used is copied.
        let fixed = 0..region(0).start;
        for (group, sizes) in groups.iter_mut().zip(&sizes.groups) {
            group.blocks = region(sizes.blocks);
        }
        let words = region(0).start;
        Self { num_tokens, input_ids, positions, logit_rows, groups, fixed, words }
    }

    /// Words of the whole buffer.
    pub(super) fn words(&self) -> usize {
        self.words
    }

    /// Lays a batch out, with padding where the layout has room for more than the batch has: a padded token is written
    /// nowhere and goes to no expert. Returns what of `words` must be copied.
    ///
    /// # Errors
    /// A plan is larger than the layout has room for.
    ///
    /// # Panics
    /// So is anything else.
    pub(super) fn write(
        &self,
        batch: &ForwardBatch,
        plans: &[GpuPlan],
        words: &mut [u32],
    ) -> Result<Vec<Range<usize>>> {
        let mut put = |to: &Range<usize>, from: &[u32], padding: u32| {
            let (used, rest) = words[to.clone()].split_at_mut(from.len());
            used.copy_from_slice(from);
            rest.fill(padding);
        };
        put(&self.num_tokens, &[batch.input_ids.len() as u32], 0);
        put(&self.input_ids, &batch.input_ids, 0);
        put(&self.positions, &batch.positions, 0);
        put(&self.logit_rows, &batch.logit_rows, NONE);
        let mut copies = vec![self.fixed.clone()];
        for ((to, from), plan) in self.groups.iter().zip(&batch.groups).zip(plans) {
            put(&to.slot_mapping, &from.slot_mapping, NONE);
            put(&to.plan, &plan.words(&to.plan_size)?, 0);
            let used = to.blocks.start..to.blocks.start + from.blocks.len();
            assert!(used.end <= to.blocks.end, "{} blocks in a layout for {}", from.blocks.len(), to.blocks.len());
            put(&used, &from.blocks, 0);
            copies.push(used);
        }
        Ok(joined(copies))
    }

    /// Gives a batch its arrays in the GPU's memory, views of `buffer`, u32 `[words]`. Its logits go to the shared ones'
    /// row `first_row` on.
    ///
    /// # Errors
    /// The buffer is too short, or the logits have fewer rows.
    pub(super) fn attach(
        &self,
        batch: &mut ForwardBatch,
        buffer: &Tensor,
        shared: &SharedTensors,
        first_row: usize,
    ) -> Result<()> {
        let part = |range: &Range<usize>| buffer.narrow(0, range.start, range.len());
        batch.on_device = Some(StepTensors {
            num_tokens: part(&self.num_tokens)?,
            input_ids: part(&self.input_ids)?,
            last_tokens: shared.last_tokens.clone(),
            positions: part(&self.positions)?,
            logit_rows: part(&self.logit_rows)?,
            logits: shared.logits.narrow(0, first_row, self.logit_rows.len())?,
        });
        for ((batch, layout), shape) in batch.groups.iter_mut().zip(&self.groups).zip(&shared.shapes) {
            batch.on_device = Some(PagedTensors {
                slot_mapping: part(&layout.slot_mapping)?,
                blocks: part(&layout.blocks)?,
                plan: part(&layout.plan)?,
                size: layout.plan_size,
                group: shape.group(),
                workspace: shared.workspace.clone(),
            });
        }
        Ok(())
    }
}

/// Ranges in their order, those that touch made one: each is a copy, and a copy is a wait for the GPU.
fn joined(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut joined: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}
