//! Cuts a step's attention into work items: once a step and KV group, for all its layers.
//!
//! An item is all heads of one KV head's group at some neighbouring query tokens of one sequence (a tile), over a range
//! of positions. Tiles of at most [`DECODE_ROWS`] rows (query token x head) go to the decode kernel, others to the
//! prefill kernel. A tile whose positions are more than an even share of the GPU is cut into parts at fixed multiples
//! from its first position, which are merged in order. How many parts depends on the whole batch, so a sequence's
//! bits do, too, where it is cut; where it is not they depend on its own tokens alone.

use crate::LaunchError;

use super::{KvGroup, unsupported};

/// Rows (query token x head of the group) of a decode tile.
pub(super) const DECODE_ROWS: u32 = 16;
/// Decode tiles begin at multiples of this, the positions that always lie in one block.
const RUN: u32 = 16;
/// Prefill tiles begin at multiples of this, so that a row's bits do not depend on which others are in its tile.
const TILE: u32 = 32;
/// Parts end at multiples of this from the first position.
const STEP: u32 = 64;
/// Parts no longer than this would spend more time on starting and merging than on positions.
const MIN_DECODE_PART: u32 = 128;
/// As above; a prefill part leaves more rows to merge.
const MIN_PREFILL_PART: u32 = 512;
/// Decode blocks that a multiprocessor holds at once.
const DECODE_PIECES: u32 = 3;
/// As many times, where tiles are more than the GPU holds at once, so that few whole ones do not come last.
const DECODE_ROUNDS: u32 = 2;
/// Prefill blocks that a multiprocessor holds at once.
const PREFILL_PIECES: u32 = 2;
/// In place of the first part's number.
const WHOLE: u32 = u32::MAX;

const HEADER_WORDS: usize = 8;
const ITEM_WORDS: usize = 8;

/// A step's layout for one KV group, on the host; the device's copy of `blocks` is an operand of its own. Sequence `s`
/// has the query tokens `cu_seqlens[s]..cu_seqlens[s + 1]`, the last of them at position `seq_lens[s] - 1`.
#[derive(Clone, Copy, Debug)]
pub struct PagedBatchView<'a> {
    /// `[seqs + 1]` query tokens, packed.
    pub cu_seqlens: &'a [u32],
    /// `[seqs]` tokens in KV once this step's are written. 0: padding, without work.
    pub seq_lens: &'a [u32],
    /// `[seqs + 1]` into the packed block tables.
    pub block_offsets: &'a [u32],
    /// `[seqs]` logical index (position / block_size) of each table's first block.
    pub first_block: &'a [u32],
}

/// How large a plan is, or may become: what buffers, and the launches of a CUDA graph, are made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanSize {
    pub(super) decode_items: u32,
    pub(super) prefill_items: u32,
    decode_parts: u32,
    prefill_parts: u32,
    kv_heads: u32,
}

impl PlanSize {
    /// Enough for any batch of up to `max_seqs` sequences with one query token each.
    pub fn decode(group: &KvGroup, max_seqs: u32, multiprocessors: u32) -> Self {
        let cuts = DECODE_ROUNDS * DECODE_PIECES * multiprocessors / group.kv_heads + 1;
        Self { decode_items: max_seqs + cuts, decode_parts: 2 * cuts, kv_heads: group.kv_heads, ..Self::default() }
    }

    /// Enough for any batch of up to `max_tokens` query tokens of up to `max_seqs` sequences.
    pub fn mixed(group: &KvGroup, max_tokens: u32, max_seqs: u32, multiprocessors: u32) -> Self {
        let cuts = PREFILL_PIECES * multiprocessors / group.kv_heads + 1;
        let tiles = max_tokens / group.prefill_tile() + max_seqs.min(max_tokens / 2);
        Self {
            prefill_items: tiles + cuts,
            prefill_parts: 2 * cuts,
            ..Self::decode(group, max_seqs.min(max_tokens), multiprocessors)
        }
    }

    /// u32s of the plan's buffer on the device.
    pub fn words(&self) -> usize {
        self.tickets_at() + self.decode_parts.max(self.prefill_parts) as usize * self.kv_heads as usize
    }

    /// Bytes of the workspace on the device, which all layers and groups may share. Its contents never matter.
    pub fn workspace_bytes(&self, group: &KvGroup) -> usize {
        let rows = (self.decode_parts * DECODE_ROWS).max(self.prefill_parts * group.prefill_rows());
        rows as usize * group.kv_heads as usize * (group.head_dim as usize + 2) * size_of::<f32>()
    }

    /// Whether a plan of size `other` fits.
    pub fn holds(&self, other: &PlanSize) -> bool {
        self.decode_items >= other.decode_items
            && self.prefill_items >= other.prefill_items
            && self.decode_parts >= other.decode_parts
            && self.prefill_parts >= other.prefill_parts
            && self.kv_heads == other.kv_heads
    }

    /// Where the decode items begin, in words; before them stand the two counts.
    pub(super) fn decode_at(&self) -> usize {
        HEADER_WORDS
    }

    pub(super) fn prefill_at(&self) -> usize {
        HEADER_WORDS + ITEM_WORDS * self.decode_items as usize
    }

    pub(super) fn tickets_at(&self) -> usize {
        HEADER_WORDS + ITEM_WORDS * (self.decode_items as usize + self.prefill_items as usize)
    }
}

/// The work items of one step and KV group.
#[derive(Clone, Debug)]
pub struct AttentionPlan {
    decode: Vec<Item>,
    prefill: Vec<Item>,
    size: PlanSize,
}

impl AttentionPlan {
    /// # Errors
    /// The lists contradict each other, or a table does not reach over the positions that are seen. That the tables'
    /// blocks are inside the cache is for the caller to check.
    pub fn new(batch: &PagedBatchView<'_>, group: &KvGroup, multiprocessors: u32) -> Result<Self, LaunchError> {
        check(batch, group).map_err(unsupported)?;
        let (mut decode, mut prefill) = (Vec::new(), Vec::new());
        for seq in 0..batch.seq_lens.len() {
            let tokens = batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq];
            if batch.seq_lens[seq] == 0 || tokens == 0 {
                continue;
            }
            if tokens * group.ratio() <= DECODE_ROWS {
                decode.push(Item::new(batch, group, seq, 0..tokens, RUN));
            } else {
                let tile = group.prefill_tile();
                let starts = (0..tokens).step_by(tile as usize);
                prefill.extend(starts.map(|t| Item::new(batch, group, seq, t..tokens.min(t + tile), TILE)));
            }
        }
        let at_once = |blocks: u32| blocks * multiprocessors / group.kv_heads;
        let rounds = if decode.len() as u32 > at_once(DECODE_PIECES) { DECODE_ROUNDS } else { 1 };
        let (decode, decode_parts) = cut(decode, at_once(rounds * DECODE_PIECES), MIN_DECODE_PART);
        let (prefill, prefill_parts) = cut(prefill, at_once(PREFILL_PIECES), MIN_PREFILL_PART);
        let size = PlanSize {
            decode_items: decode.len() as u32,
            prefill_items: prefill.len() as u32,
            decode_parts,
            prefill_parts,
            kv_heads: group.kv_heads,
        };
        Ok(Self { decode, prefill, size })
    }

    /// The least that this plan can be laid out for.
    pub fn size(&self) -> PlanSize {
        self.size
    }

    /// What is uploaded before the first layer of each step: `size.words()` u32s.
    ///
    /// # Errors
    /// The plan is larger than `size`.
    pub fn words(&self, size: &PlanSize) -> Result<Vec<u32>, LaunchError> {
        if !size.holds(&self.size) {
            let problem =
                format!("a plan of {:?} does not fit {size:?}: make the latter for larger batches", self.size);
            return Err(unsupported(problem));
        }
        let mut words = vec![0; size.words()];
        words[0] = self.decode.len() as u32;
        words[1] = self.prefill.len() as u32;
        for (items, at) in [(&self.decode, size.decode_at()), (&self.prefill, size.prefill_at())] {
            for (item, words) in items.iter().zip(words[at..].chunks_exact_mut(ITEM_WORDS)) {
                words.copy_from_slice(&item.words());
            }
        }
        Ok(words)
    }
}

/// One block's work for one KV head.
#[derive(Clone, Debug)]
struct Item {
    /// Of the batch's query tokens, the first.
    token: u32,
    tokens: u32,
    /// Of the first token.
    position: u32,
    /// Positions to pass over.
    begin: u32,
    end: u32,
    /// Logical block `b` is `blocks[table + b]`, wrapping.
    table: u32,
    first_part: u32,
    part: u32,
    parts: u32,
}

impl Item {
    /// Some query tokens of a sequence, over all positions that any of them sees, from a multiple of `align` on.
    fn new(batch: &PagedBatchView<'_>, group: &KvGroup, seq: usize, tokens: std::ops::Range<u32>, align: u32) -> Self {
        let position = start(batch, seq) + tokens.start;
        Self {
            token: batch.cu_seqlens[seq] + tokens.start,
            tokens: tokens.end - tokens.start,
            position,
            begin: group.first_visible(position) / align * align,
            end: start(batch, seq) + tokens.end,
            table: batch.block_offsets[seq].wrapping_sub(batch.first_block[seq]),
            first_part: WHOLE,
            part: 0,
            parts: 1,
        }
    }

    fn span(&self) -> u32 {
        self.end - self.begin
    }

    fn words(&self) -> [u32; ITEM_WORDS] {
        let Self { token, tokens, position, begin, end, table, first_part, part, parts } = *self;
        [token, tokens, position, begin, end, table, first_part, part | parts << 16]
    }
}

/// Cuts tiles for `pieces` blocks a KV head, into parts of `least` positions or more; longest first, so that none
/// starts last. Returns the items, and how many of them are parts.
fn cut(tiles: Vec<Item>, pieces: u32, least: u32) -> (Vec<Item>, u32) {
    let total: u64 = tiles.iter().map(|tile| u64::from(tile.span())).sum();
    let share = total.div_ceil(u64::from(pieces.max(1))).max(u64::from(least)) as u32;
    let share = share.next_multiple_of(STEP);
    let (mut items, mut parts) = (Vec::with_capacity(tiles.len()), 0);
    for tile in tiles {
        if tile.span() <= share {
            items.push(tile);
            continue;
        }
        let even = tile.span().div_ceil(tile.span().div_ceil(share)).next_multiple_of(STEP);
        let count = tile.span().div_ceil(even);
        items.extend((0..count).map(|part| Item {
            begin: tile.begin + part * even,
            end: tile.end.min(tile.begin + (part + 1) * even),
            first_part: parts,
            part,
            parts: count,
            ..tile
        }));
        parts += count;
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.span()));
    (items, parts)
}

/// The position of a sequence's first query token.
fn start(batch: &PagedBatchView<'_>, seq: usize) -> u32 {
    batch.seq_lens[seq] - (batch.cu_seqlens[seq + 1] - batch.cu_seqlens[seq])
}

fn check(batch: &PagedBatchView<'_>, group: &KvGroup) -> Result<(), String> {
    group.check()?;
    let PagedBatchView { cu_seqlens, seq_lens, block_offsets, first_block } = *batch;
    let seqs = seq_lens.len();
    if cu_seqlens.len() != seqs + 1 || block_offsets.len() != seqs + 1 || first_block.len() != seqs {
        return Err(format!(
            "{seqs} sequences with {} cu_seqlens, {} block_offsets and {} first_block; one more, one more, and as many \
             are needed",
            cu_seqlens.len(),
            block_offsets.len(),
            first_block.len()
        ));
    }
    if !cu_seqlens.is_sorted() || !block_offsets.is_sorted() {
        return Err("cu_seqlens and block_offsets must rise".to_owned());
    }
    for seq in 0..seqs {
        let (tokens, end) = (cu_seqlens[seq + 1] - cu_seqlens[seq], seq_lens[seq]);
        if end == 0 || tokens == 0 {
            continue;
        }
        if tokens > end {
            return Err(format!("sequence {seq} has {tokens} query tokens, but {end} in all"));
        }
        let from = u64::from(first_block[seq]) * u64::from(group.block_size);
        let to = from + u64::from(block_offsets[seq + 1] - block_offsets[seq]) * u64::from(group.block_size);
        let visible = group.first_visible(end - tokens);
        if u64::from(visible) < from || u64::from(end) > to {
            return Err(format!("sequence {seq} sees positions {visible}..{end}, its blocks are of {from}..{to}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::KvDtype;
    use super::*;

    const GROUP: KvGroup = KvGroup {
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        block_size: 16,
        dtype: KvDtype::Bf16,
        window: None,
        chunk: None,
    };

    /// Sequences as (positions before, query tokens).
    fn plan(seqs: &[(u32, u32)], group: &KvGroup, multiprocessors: u32) -> AttentionPlan {
        let (mut cu_seqlens, mut block_offsets) = (vec![0], vec![0]);
        for (before, tokens) in seqs {
            cu_seqlens.push(cu_seqlens.last().unwrap() + tokens);
            block_offsets.push(block_offsets.last().unwrap() + (before + tokens).div_ceil(16));
        }
        let seq_lens: Vec<u32> = seqs.iter().map(|(before, tokens)| before + tokens).collect();
        let view = PagedBatchView {
            cu_seqlens: &cu_seqlens,
            seq_lens: &seq_lens,
            block_offsets: &block_offsets,
            first_block: &vec![0; seqs.len()],
        };
        AttentionPlan::new(&view, group, multiprocessors).unwrap()
    }

    /// A deterministic mix of lengths.
    fn mixes() -> impl Iterator<Item = Vec<(u32, u32)>> {
        (1..60u32).map(|n| {
            let lengths = (0..n % 23).map(|i| ((i * 7919 + n * 104_729) % (n * 300), 1 + (i * i * n) % 97));
            lengths.map(|(before, tokens)| (before, if tokens % 3 == 0 { tokens } else { 1 })).collect()
        })
    }

    #[test]
    fn every_token_sees_all_its_positions_once() {
        for (seqs, window) in mixes().flat_map(|m| [(m.clone(), None), (m, Some(300))]) {
            let group = KvGroup { window, ..GROUP };
            let plan = plan(&seqs, &group, 132);
            let mut seen: Vec<u64> = vec![0; seqs.iter().map(|s| s.1 as usize).sum()];
            for item in plan.decode.iter().chain(&plan.prefill) {
                for t in 0..item.tokens {
                    let position = item.position + t;
                    let from = item.begin.max(group.first_visible(position));
                    seen[(item.token + t) as usize] += u64::from(item.end.min(position + 1).saturating_sub(from));
                }
            }
            let want = seqs.iter().flat_map(|(before, tokens)| *before..before + tokens);
            let want: Vec<u64> = want.map(|p| u64::from(p + 1 - group.first_visible(p))).collect();
            assert_eq!(seen, want, "{seqs:?}");
        }
    }

    #[test]
    fn a_plan_fits_the_size_made_for_such_batches() {
        for (seqs, multiprocessors) in mixes().flat_map(|m| [(m.clone(), 1), (m.clone(), 20), (m, 132)]) {
            let tokens = seqs.iter().map(|s| s.1).sum();
            let size = PlanSize::mixed(&GROUP, tokens, seqs.len() as u32, multiprocessors);
            let plan = plan(&seqs, &GROUP, multiprocessors);
            assert!(size.holds(&plan.size()), "{size:?} {:?}", plan.size());
            assert_eq!(plan.words(&size).unwrap().len(), size.words());
        }
        for before in [0, 100, 5000, 100_000] {
            let size = PlanSize::decode(&GROUP, 3, 132);
            assert!(size.holds(&plan(&[(before, 1); 3], &GROUP, 132).size()));
        }
    }

    #[test]
    fn one_long_sequence_fills_the_gpu_and_a_large_batch_is_not_cut() {
        let one = plan(&[(32_767, 1)], &GROUP, 132);
        let blocks = one.size().decode_items * 8;
        assert!((2 * 132..=3 * 132).contains(&blocks), "{blocks}");
        let many = plan(&[(2047, 1); 256], &GROUP, 132);
        assert_eq!((many.size().decode_items, many.size().decode_parts), (256, 0));
    }

    #[test]
    fn contradictions_are_refused() {
        let view = |cu_seqlens, seq_lens, block_offsets, first_block| {
            AttentionPlan::new(&PagedBatchView { cu_seqlens, seq_lens, block_offsets, first_block }, &GROUP, 132)
        };
        let message = |plan: Result<AttentionPlan, LaunchError>| plan.unwrap_err().to_string();
        assert!(message(view(&[0, 1], &[1], &[0], &[0])).contains("block_offsets"));
        assert!(message(view(&[0, 2], &[1], &[0, 1], &[0])).contains("2 query tokens, but 1 in all"));
        assert!(message(view(&[0, 1], &[17], &[0, 1], &[0])).contains("sees positions 0..17"));
        assert!(message(view(&[0, 1], &[17], &[0, 1], &[1])).contains("its blocks are of 16..32"));
        assert!(message(view(&[1, 0], &[1], &[0, 1], &[0])).contains("rise"));
        let plan = plan(&[(10, 1)], &GROUP, 132);
        assert!(plan.words(&PlanSize::default()).unwrap_err().to_string().contains("does not fit"));
    }
}
