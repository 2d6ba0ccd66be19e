//! A step plan's ids and block tables as the model's [`ForwardBatch`].
//!
//! Every slot, token, position and block is checked here against what exists: past this point an id is an address,
//! and a wrong one would be written into another sequence's cache.

use plimsoll_core::{CacheConfig, GroupTables, KvGroup, PromptSpan, ScheduledSeq, SeqSlot, StepPlan, TokenInput};
use plimsoll_nn::ForwardBatch;
use plimsoll_ops::attention::PagedBatch;

use crate::slots::{LastToken, Slots};

/// A plan that contradicts itself or the executor's sizes: the scheduler and the executor disagree on the world.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanFault {
    #[error("slot {0:?} is beyond the {1} that exist")]
    NoSuchSlot(SeqSlot, usize),
    #[error("slot {0:?} runs before a request was bound to it")]
    UnboundSlot(SeqSlot),
    #[error("slot {0:?} stands in the plan twice")]
    SlotTwice(SeqSlot),
    #[error("slot {0:?} is to continue from its last sampled token, but has none, or takes {1} tokens instead of one")]
    NoLastToken(SeqSlot, u32),
    #[error("slot {0:?} has no input tokens")]
    EmptySequence(SeqSlot),
    #[error("the plan holds {held} input tokens, its sequences take {taken}")]
    TokenCount { held: usize, taken: usize },
    #[error("token {0} is outside the vocabulary of {1}")]
    TokenOutsideVocabulary(u32, u32),
    #[error("slot {0:?} would grow to {1} tokens, beyond the {2} of --max-model-len")]
    TooLong(SeqSlot, u64, u32),
    #[error("slot {slot:?}: prompt tokens {from}..{to} are to be scored, which are not asked for or not in this step")]
    WrongSpan { slot: SeqSlot, from: u32, to: u32 },
    #[error("the plan has {0} block tables, the cache {1} groups")]
    GroupCount(usize, usize),
    #[error("the table of group {group} is not in compressed-row form for {seqs} sequences")]
    MalformedTable { group: usize, seqs: usize },
    #[error("group {group}, slot {slot:?}: block {block} is beyond the {num_blocks} that exist")]
    NoSuchBlock { group: usize, slot: SeqSlot, block: u32, num_blocks: u32 },
    #[error(
        "group {group}, slot {slot:?}: the table covers positions {covered_from}..{covered_to}, the step reaches {from}..{to}"
    )]
    NotCovered { group: usize, slot: SeqSlot, covered_from: u64, covered_to: u64, from: u64, to: u64 },
}

/// Sizes that a plan is checked against.
#[derive(Clone, Debug)]
pub(crate) struct BatchLimits {
    pub(crate) cache: CacheConfig,
    pub(crate) vocab_size: u32,
    pub(crate) max_model_len: u32,
    pub(crate) last_token: LastToken,
}

/// Lays a plan out for the model. Bindings have been applied to `slots` already.
pub(crate) fn build(plan: &StepPlan, slots: &mut Slots, limits: &BatchLimits) -> Result<ForwardBatch, PlanFault> {
    if plan.tables.len() != limits.cache.groups.len() {
        return Err(PlanFault::GroupCount(plan.tables.len(), limits.cache.groups.len()));
    }
    let layout = SeqLayout::new(plan, slots, limits)?;
    let input_ids = input_ids(plan, slots, limits)?;
    let positions = plan.seqs.iter().flat_map(|seq| seq.start..seq.start + seq.len).collect();
    check_spans(plan, slots)?;
    let starts = plan.seqs.iter().zip(&layout.cu_seqlens);
    let logit_rows = starts.flat_map(|(seq, &first)| logit_rows(seq, first)).collect();
    let groups = (0..plan.tables.len())
        .map(|group| paged_batch(plan, group, &layout, &limits.cache))
        .collect::<Result<_, _>>()?;
    Ok(ForwardBatch { input_ids, positions, groups, logit_rows, on_device: None })
}

/// The rows of one sequence, whose first is `first`, that logits are wanted of: of each scored token the one before it, then
/// the one that samples.
fn logit_rows(seq: &ScheduledSeq, first: u32) -> impl Iterator<Item = u32> {
    let scored = seq.scores.map_or(0..0, |span| span.from - 1 - seq.start + first..span.to - 1 - seq.start + first);
    scored.chain(seq.sample.map(|_| first + seq.len - 1))
}

/// What is to be scored was asked for, is in the prompt, and follows on what the step computes.
fn check_spans(plan: &StepPlan, slots: &Slots) -> Result<(), PlanFault> {
    for seq in &plan.seqs {
        let Some(PromptSpan { from, to }) = seq.scores else { continue };
        let is_computed = seq.start < from && from < to && to <= seq.start + seq.len + 1;
        if !is_computed || !slots.get(seq.slot)?.may_score(to) {
            return Err(PlanFault::WrongSpan { slot: seq.slot, from, to });
        }
    }
    Ok(())
}

/// Lengths of a step's sequences, the same in every group.
struct SeqLayout {
    cu_seqlens: Vec<u32>,
    seq_lens: Vec<u32>,
}

impl SeqLayout {
    fn new(plan: &StepPlan, slots: &mut Slots, limits: &BatchLimits) -> Result<Self, PlanFault> {
        slots.begin_step();
        let mut taken = 0usize;
        let mut cu_seqlens = vec![0];
        let mut seq_lens = Vec::with_capacity(plan.seqs.len());
        for seq in &plan.seqs {
            slots.mark_used(seq.slot)?;
            if seq.len == 0 {
                return Err(PlanFault::EmptySequence(seq.slot));
            }
            let end = u64::from(seq.start) + u64::from(seq.len);
            if end > u64::from(limits.max_model_len) {
                return Err(PlanFault::TooLong(seq.slot, end, limits.max_model_len));
            }
            taken += seq.len as usize;
            // No truncation: a wrong sum is refused below, a right one is the length of a vector of `u32` positions.
            cu_seqlens.push(taken as u32);
            seq_lens.push(end as u32);
        }
        if taken != plan.tokens.len() {
            return Err(PlanFault::TokenCount { held: plan.tokens.len(), taken });
        }
        Ok(Self { cu_seqlens, seq_lens })
    }
}

/// The plan's tokens, with the placeholders replaced by what their slots sampled last, or by where the device has it.
fn input_ids(plan: &StepPlan, slots: &Slots, limits: &BatchLimits) -> Result<Vec<u32>, PlanFault> {
    if let Some(&id) = plan.tokens.iter().find(|&&id| id >= limits.vocab_size) {
        return Err(PlanFault::TokenOutsideVocabulary(id, limits.vocab_size));
    }
    let mut ids = plan.tokens.clone();
    let mut at = 0;
    for seq in &plan.seqs {
        if seq.input == TokenInput::LastSampled {
            let state = slots.get(seq.slot)?;
            let last = match limits.last_token {
                LastToken::OnHost => state.last_sampled,
                LastToken::OnDevice => state.has_last_token().then_some(token_of_slot(seq.slot)),
            };
            ids[at] = last.filter(|_| seq.len == 1).ok_or(PlanFault::NoLastToken(seq.slot, seq.len))?;
        }
        at += seq.len as usize;
    }
    Ok(ids)
}

/// The id that stands for a slot's last token in the device's memory (see `plimsoll_ops::indices::TokenIds`).
fn token_of_slot(slot: SeqSlot) -> u32 {
    1 << 31 | slot.0
}

fn paged_batch(
    plan: &StepPlan,
    group: usize,
    layout: &SeqLayout,
    cache: &CacheConfig,
) -> Result<PagedBatch, PlanFault> {
    let (table, block_size) = (&plan.tables[group], cache.block_size);
    check_form(table, plan.seqs.len()).ok_or(PlanFault::MalformedTable { group, seqs: plan.seqs.len() })?;
    let mut slot_mapping = Vec::with_capacity(plan.tokens.len());
    for (row, seq) in plan.seqs.iter().enumerate() {
        check_row(table, row, seq, group, cache)?;
        let (first_block, blocks) = table.row(row);
        slot_mapping.extend((seq.start..seq.start + seq.len).map(|position| {
            let block = blocks[(position / block_size - first_block) as usize];
            block.0 * block_size + position % block_size
        }));
    }
    Ok(PagedBatch {
        block_size: block_size as usize,
        cu_seqlens: layout.cu_seqlens.clone(),
        seq_lens: layout.seq_lens.clone(),
        block_offsets: table.offsets.clone(),
        blocks: table.blocks.iter().map(|block| block.0).collect(),
        first_block: table.first_block.clone(),
        slot_mapping,
        on_device: None,
    })
}

/// `None` unless the offsets run from 0 to the number of blocks without going back, one row a sequence.
fn check_form(table: &GroupTables, seqs: usize) -> Option<()> {
    let has_rows = table.offsets.len() == seqs + 1 && table.first_block.len() == seqs;
    let spans_blocks = table.offsets.first() == Some(&0) && table.offsets.last() == Some(&(table.blocks.len() as u32));
    (has_rows && spans_blocks && table.offsets.is_sorted()).then_some(())
}

/// A row's blocks exist, and cover every position that the step's queries see or write.
fn check_row(
    table: &GroupTables,
    row: usize,
    seq: &ScheduledSeq,
    group: usize,
    cache: &CacheConfig,
) -> Result<(), PlanFault> {
    let KvGroup { window, num_blocks } = cache.groups[group];
    let (first_block, blocks) = table.row(row);
    if let Some(block) = blocks.iter().find(|block| block.0 >= num_blocks) {
        return Err(PlanFault::NoSuchBlock { group, slot: seq.slot, block: block.0, num_blocks });
    }
    let reach = window.map_or(u32::MAX, |window| window.saturating_sub(1));
    let from = u64::from(seq.start.saturating_sub(reach));
    let to = u64::from(seq.start) + u64::from(seq.len);
    let covered_from = u64::from(first_block) * u64::from(cache.block_size);
    let covered_to = covered_from + blocks.len() as u64 * u64::from(cache.block_size);
    if covered_from > from || covered_to < to {
        return Err(PlanFault::NotCovered { group, slot: seq.slot, covered_from, covered_to, from, to });
    }
    Ok(())
}
