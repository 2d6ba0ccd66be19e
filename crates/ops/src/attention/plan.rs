//! Cuts a batch's attention into pieces of work of about even cost. Nothing here changes a bit of the result.

use std::ops::Range;

use super::batch::PagedBatch;
use super::kernel::{Heads, SEGMENT, partial_row_len};
use super::{AttentionParams, for_each};

/// Rows (query token x head of the group) that share one pass over keys and values, at most, unless one token has more.
const TILE_ROWS: usize = 64;
/// What reading and converting a position costs, in rows.
const READ_COST: usize = 8;

/// Some query tokens of one sequence, with all query heads of one KV head, over some segments of its positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Work {
    pub(super) seq: usize,
    pub(super) kv_head: usize,
    /// Of the sequence's query tokens in this batch.
    pub(super) tokens: Range<usize>,
    /// Positions any of the tokens sees.
    pub(super) span: Range<usize>,
    /// Segments to pass over, in order.
    pub(super) segments: Range<usize>,
    /// Where in the partials the result goes; else straight to the output (all segments are passed over).
    pub(super) partial: Option<usize>,
}

/// A work that was cut into one a segment, and where its partials begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Split {
    pub(super) whole: Work,
    pub(super) partial: usize,
}

pub(super) struct Plan {
    /// Costliest first, so that none starts last.
    pub(super) work: Vec<Work>,
    splits: Vec<Split>,
    partial_len: usize,
    cost: usize,
}

impl Work {
    pub(super) fn rows(&self, heads: Heads) -> usize {
        self.tokens.len() * heads.group()
    }

    /// In multiply-adds, about.
    fn cost(&self, heads: Heads) -> usize {
        let from = self.span.start.max(self.segments.start * SEGMENT);
        let to = self.span.end.min(self.segments.end * SEGMENT);
        2 * (to - from) * heads.dim * (self.rows(heads) + READ_COST)
    }
}

impl Plan {
    pub(super) fn new(batch: &PagedBatch, heads: Heads, params: &AttentionParams, threads: usize) -> Plan {
        let whole = whole_works(batch, heads, params);
        let cost: usize = whole.iter().map(|w| w.cost(heads)).sum();
        // A work this large could leave the other threads idle at the end.
        let too_large = (cost / (4 * threads)).max(1);
        let mut plan = Plan { work: Vec::with_capacity(whole.len()), splits: Vec::new(), partial_len: 0, cost };
        for work in whole {
            if threads > 1 && work.cost(heads) > too_large && work.segments.len() > 1 {
                plan.split(work, heads);
            } else {
                plan.work.push(work);
            }
        }
        plan.work.sort_by_key(|w| std::cmp::Reverse(w.cost(heads)));
        plan
    }

    fn split(&mut self, whole: Work, heads: Heads) {
        let partial = self.partial_len;
        for segment in whole.segments.clone() {
            let part = Work { segments: segment..segment + 1, partial: Some(self.partial_len), ..whole.clone() };
            self.partial_len += whole.rows(heads) * partial_row_len(heads.dim);
            self.work.push(part);
        }
        self.splits.push(Split { whole, partial });
    }

    /// f32s that the partial results need.
    pub(super) fn partial_len(&self) -> usize {
        self.partial_len
    }

    /// Calls `f` with the index of every work.
    pub(super) fn run(&self, f: impl Fn(usize) + Sync + Send) {
        for_each(self.work.len(), self.cost, f);
    }

    /// Calls `f` with every split, once its parts are done.
    pub(super) fn run_merges(&self, f: impl Fn(&Split) + Sync + Send) {
        for_each(self.splits.len(), self.partial_len, |i| f(&self.splits[i]));
    }
}

fn whole_works(batch: &PagedBatch, heads: Heads, params: &AttentionParams) -> Vec<Work> {
    let tile = (TILE_ROWS / heads.group()).max(1);
    let mut works = Vec::with_capacity(batch.num_seqs() * heads.kv);
    for seq in 0..batch.num_seqs() {
        let queries = batch.queries(seq);
        for first in (0..queries.len).step_by(tile) {
            let tokens = first..queries.len.min(first + tile);
            let span = params.first_visible(queries.start + first)..queries.start + tokens.end;
            let segments = span.start / SEGMENT..(span.end - 1) / SEGMENT + 1;
            works.extend((0..heads.kv).map(|kv_head| Work {
                seq,
                kv_head,
                tokens: tokens.clone(),
                span: span.clone(),
                segments: segments.clone(),
                partial: None,
            }));
        }
    }
    works
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    const HEADS: Heads = Heads { query: 9, kv: 3, dim: 64 };
    const FULL: AttentionParams = AttentionParams { scale: 1.0, window: None, chunk: None, softcap: None };

    fn batch(seqs: &[(u32, u32)]) -> PagedBatch {
        let mut batch =
            PagedBatch { block_size: 16, cu_seqlens: vec![0], block_offsets: vec![0], ..Default::default() };
        for (start, len) in seqs {
            batch.cu_seqlens.push(batch.cu_seqlens.last().unwrap() + len);
            batch.seq_lens.push(start + len);
            batch.first_block.push(0);
            batch.blocks.extend(0..(start + len).div_ceil(16));
            batch.block_offsets.push(batch.blocks.len() as u32);
        }
        batch
    }

    /// Every row of the output comes from one whole work or one split, each of which covers its span; partials of all
    /// parts lie side by side.
    fn check(plan: &Plan, batch: &PagedBatch) {
        let tokens = *batch.cu_seqlens.last().unwrap() as usize;
        let mut writers = vec![0; tokens * HEADS.kv];
        let mut partials = vec![0; plan.partial_len()];
        let whole = plan.work.iter().filter(|w| w.partial.is_none()).chain(plan.splits.iter().map(|s| &s.whole));
        for work in whole {
            assert_eq!(work.segments, work.span.start / SEGMENT..work.span.end.div_ceil(SEGMENT));
            for token in work.tokens.clone() {
                writers[(batch.queries(work.seq).first + token) * HEADS.kv + work.kv_head] += 1;
            }
        }
        assert!(writers.iter().all(|n| *n == 1));
        for work in &plan.work {
            if let Some(at) = work.partial {
                assert_eq!(work.segments.len(), 1);
                let len = work.rows(HEADS) * partial_row_len(HEADS.dim);
                partials[at..at + len].iter_mut().for_each(|n| *n += 1);
            }
        }
        assert!(partials.iter().all(|n| *n == 1));
        let parts = plan.splits.iter().map(|s| s.whole.segments.len()).sum::<usize>();
        assert_eq!(parts, plan.work.iter().filter(|w| w.partial.is_some()).count());
    }

    #[test]
    fn every_row_has_one_writer() {
        let mut random = Random::new(41);
        for _ in 0..200 {
            let seqs: Vec<(u32, u32)> =
                (0..random.below(6)).map(|_| (random.below(3000) as u32, random.below(400) as u32)).collect();
            let batch = batch(&seqs);
            let window = [None, Some(1), Some(300)][random.below(3)];
            let chunk = [None, Some(100)][random.below(2)];
            let params = AttentionParams { window, chunk, ..FULL };
            check(&Plan::new(&batch, HEADS, &params, 1 + random.below(8)), &batch);
        }
    }

    #[test]
    fn no_work_is_much_larger_than_a_threads_share() {
        let mut mixed = vec![(500, 1); 32];
        mixed[0] = (0, 2000);
        for threads in [2, 8] {
            for seqs in [&[(0, 2000)][..], &[(7999, 1)], &mixed] {
                let batch = batch(seqs);
                let plan = Plan::new(&batch, HEADS, &FULL, threads);
                let largest = plan.work.iter().map(|w| w.cost(HEADS)).max().unwrap();
                let one_segment = 2 * SEGMENT * HEADS.dim * (TILE_ROWS + READ_COST);
                assert!(largest <= (plan.cost / (2 * threads)).max(one_segment), "{threads} threads, {seqs:?}");
                assert!(plan.work.len() >= 2 * threads);
            }
        }
    }
}
