//! The CPU computation of one piece of work: online softmax over tiles of keys and values.

use std::ops::Range;

use super::AttentionParams;
use super::batch::PagedBatch;
use super::plan::{Split, Work};
use super::product::mul_acc;
use super::scratch::{Scratch, TileScratch};
use super::tile::{KvElement, TileRows, load_keys, load_values, prefetch};
use crate::simd::{Level, SUM_LANES, Simd, dispatch, exp, fma, sum_lanes, tanh};

/// Positions whose keys and values are converted together; tiles start at its multiples.
pub(super) const TILE: usize = 32;
/// Positions whose softmax is finished before it is merged with those before it: what long contexts are cut into.
pub(super) const SEGMENT: usize = 256;

/// The heads of a layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
}

impl Heads {
    /// Query heads a KV head.
    pub(super) fn group(self) -> usize {
        self.query / self.kv
    }
}

/// A head's columns, filled up to whole vectors.
pub(super) fn padded(dim: usize) -> usize {
    dim.next_multiple_of(SUM_LANES)
}

/// f32s that a row's unfinished softmax takes: weighted values, maximum, sum.
pub(super) fn partial_row_len(dim: usize) -> usize {
    padded(dim) + 2
}

/// The operands of one call, checked.
pub(super) struct Kernel<'a, T> {
    pub(super) level: Level,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [T],
    pub(super) v: &'a [T],
    pub(super) batch: &'a PagedBatch,
    pub(super) params: &'a AttentionParams,
    /// `[query heads]`: see [`super::paged_attention_with_sinks`].
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) heads: Heads,
}

impl<T: KvElement> Kernel<'_, T> {
    /// Attends a work's rows (tokens x heads of the group) and writes them through `out`, or, if the work is part of a
    /// split, leaves their partial softmax in `partials`. Both give the named range for writing.
    pub(super) fn run<'o>(
        &self,
        work: &Work,
        out: impl Fn(Range<usize>) -> &'o mut [f32],
        partials: impl Fn(Range<usize>) -> &'o mut [f32],
    ) {
        let rows = work.rows(self.heads);
        let state_len = rows * partial_row_len(self.heads.dim);
        Scratch::with(rows, self.heads.dim, |mut scratch| {
            self.load_queries(work, scratch.queries);
            if let Some(at) = work.partial {
                let mut part = Softmax::empty(partials(at..at + state_len), rows);
                return self.attend_segment(work, work.segments.start, scratch.queries, &mut part, &mut scratch.tile);
            }
            let mut total = Softmax::empty(scratch.total, rows);
            for segment in work.segments.clone() {
                let mut part = Softmax::empty(scratch.part, rows);
                self.attend_segment(work, segment, scratch.queries, &mut part, &mut scratch.tile);
                total.merge(self.level, &part);
            }
            self.finish(work, &mut total, out);
        });
    }

    /// Merges the parts of a split in order and writes its rows through `out`.
    pub(super) fn merge<'o>(
        &self,
        split: &Split,
        out: impl Fn(Range<usize>) -> &'o mut [f32],
        partials: impl Fn(Range<usize>) -> &'o mut [f32],
    ) {
        let rows = split.whole.rows(self.heads);
        let len = rows * partial_row_len(self.heads.dim);
        let mut blob = vec![0.0; len];
        let mut total = Softmax::empty(&mut blob, rows);
        for i in 0..split.whole.segments.len() {
            let at = split.partial + i * len;
            total.merge(self.level, &Softmax::of(partials(at..at + len), rows));
        }
        self.finish(&split.whole, &mut total, out);
    }

    /// Where the group's columns of a token begin in `q` and the output.
    fn group_start(&self, work: &Work, token: usize) -> usize {
        let token = self.batch.queries(work.seq).first + token;
        (token * self.heads.query + work.kv_head * self.heads.group()) * self.heads.dim
    }

    /// Scaled queries, a row each, columns padded.
    fn load_queries(&self, work: &Work, queries: &mut [f32]) {
        let Heads { dim, .. } = self.heads;
        let mut rows = queries.chunks_exact_mut(padded(dim));
        for token in work.tokens.clone() {
            let group = &self.q[self.group_start(work, token)..][..self.heads.group() * dim];
            for (q, row) in group.chunks_exact(dim).zip(rows.by_ref()) {
                for (row, q) in row.iter_mut().zip(q) {
                    *row = q * self.params.scale;
                }
            }
        }
    }

    fn finish<'o>(&self, work: &Work, total: &mut Softmax<'_>, out: impl Fn(Range<usize>) -> &'o mut [f32]) {
        let Heads { dim, .. } = self.heads;
        if let Some(sinks) = self.sinks {
            let group = &sinks[work.kv_head * self.heads.group()..][..self.heads.group()];
            total.add_sinks(self.level, group);
        }
        let mut rows = total.values.chunks_exact(padded(dim)).zip(&*total.sum);
        for token in work.tokens.clone() {
            let start = self.group_start(work, token);
            let group = out(start..start + self.heads.group() * dim);
            for (out, (values, sum)) in group.chunks_exact_mut(dim).zip(rows.by_ref()) {
                let factor = 1.0 / sum;
                for (out, value) in out.iter_mut().zip(values) {
                    *out = value * factor;
                }
            }
        }
    }

    /// Passes over one segment's tiles. `part` starts empty.
    fn attend_segment(
        &self,
        work: &Work,
        segment: usize,
        queries: &[f32],
        part: &mut Softmax<'_>,
        tile: &mut TileScratch<'_>,
    ) {
        tile.sums.fill(0.0);
        let to = work.span.end.min((segment + 1) * SEGMENT);
        let mut start = work.span.start.max(segment * SEGMENT) / TILE * TILE;
        while start < to {
            self.attend_tile(work, start, queries, part, tile);
            start += TILE;
        }
        for (sum, lanes) in part.sum.iter_mut().zip(tile.sums.as_chunks::<TILE>().0) {
            *sum = sum_lanes(std::array::from_fn(|i| lanes[i] + lanes[i + SUM_LANES]));
        }
    }

    fn attend_tile(
        &self,
        work: &Work,
        start: usize,
        queries: &[f32],
        part: &mut Softmax<'_>,
        tile: &mut TileScratch<'_>,
    ) {
        let Heads { dim, .. } = self.heads;
        let (width, group) = (padded(dim), self.heads.group());
        let (keys, value_rows) = (self.tile_rows(self.k, work, start), self.tile_rows(self.v, work, start));
        prefetch(&value_rows);
        if start + TILE < work.span.end {
            prefetch(&self.tile_rows(self.k, work, start + TILE));
        }
        load_keys(self.level, &keys, dim, tile.keys);
        tile.scores.fill(0.0);
        mul_acc(self.level, queries, width, tile.keys, 0..dim, tile.scores, TILE);
        let first = self.batch.queries(work.seq).start + work.tokens.start;
        let visible = |row: usize| self.visible_in_tile(first + row / group, start);
        for (row, scores) in tile.scores.as_chunks_mut::<TILE>().0.iter_mut().enumerate() {
            let seen = visible(row);
            if !seen.is_empty() {
                let sums = &mut tile.sums.as_chunks_mut::<TILE>().0[row];
                let values = &mut part.values[row * width..][..width];
                softmax_row(self.level, scores, seen, self.params.softcap, &mut part.max[row], sums, values);
            }
        }
        load_values(self.level, &value_rows, width, tile.values);
        // Rows that see the same positions go together; positions that a row does not see are not touched for it,
        // since what lies there may be anything.
        let rows = part.sum.len();
        let mut row = 0;
        while row < rows {
            let seen = visible(row);
            let run = (row..rows).step_by(group).take_while(|r| visible(*r) == seen).count() * group;
            if !seen.is_empty() {
                let (scores, values) = (&tile.scores[row * TILE..], &mut part.values[row * width..][..run * width]);
                mul_acc(self.level, scores, TILE, tile.values, seen, values, width);
            }
            row += run;
        }
    }

    /// Of the tile at `start`, what the query at `position` sees.
    fn visible_in_tile(&self, position: usize, start: usize) -> Range<usize> {
        let from = self.params.first_visible(position).clamp(start, start + TILE) - start;
        let to = (position + 1).clamp(start, start + TILE) - start;
        from..to
    }

    /// Where the keys or values of the tile at `start` lie in `cache`.
    fn tile_rows<'c>(&self, cache: &'c [T], work: &Work, start: usize) -> TileRows<'c, T> {
        let Heads { kv, dim, .. } = self.heads;
        let size = self.batch.block_size;
        let (table_start, blocks) = self.batch.table(work.seq);
        let seen = start.max(work.span.start)..(start + TILE).min(work.span.end);
        let (mut block, mut offset) = ((seen.start - table_start) / size, (seen.start - table_start) % size);
        let mut rows = [None; TILE];
        for row in &mut rows[seen.start - start..seen.end - start] {
            let at = ((blocks[block] as usize * kv + work.kv_head) * size + offset) * dim;
            *row = Some(&cache[at..at + dim]);
            offset += 1;
            if offset == size {
                (block, offset) = (block + 1, 0);
            }
        }
        rows
    }
}

/// An unfinished softmax of some rows: with `m` the largest score so far, `sum = sum(exp(score - m))` and
/// `values = sum(exp(score - m) * v)`.
struct Softmax<'a> {
    /// `[rows, padded(dim)]`
    values: &'a mut [f32],
    max: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> Softmax<'a> {
    /// Lies in `blob`, which holds one already.
    fn of(blob: &'a mut [f32], rows: usize) -> Self {
        let (values, rest) = blob.split_at_mut(blob.len() - 2 * rows);
        let (max, sum) = rest.split_at_mut(rows);
        Self { values, max, sum }
    }

    /// Lies in `blob`, of nothing yet.
    fn empty(blob: &'a mut [f32], rows: usize) -> Self {
        blob.fill(0.0);
        let softmax = Self::of(blob, rows);
        softmax.max.fill(f32::NEG_INFINITY);
        softmax
    }

    /// Adds each head's sink, as a last position without a value; rows are tokens by heads.
    fn add_sinks(&mut self, level: Level, sinks: &[f32]) {
        let width = self.values.len() / self.sum.len();
        let nothing = vec![0.0; width];
        for (row, values) in self.values.chunks_exact_mut(width).enumerate() {
            let sink = sinks[row % sinks.len()];
            merge_row(level, &mut self.max[row], &mut self.sum[row], values, sink, 1.0, &nothing);
        }
    }

    /// Adds later positions' `part`.
    fn merge(&mut self, level: Level, part: &Softmax<'_>) {
        let width = self.values.len() / self.sum.len();
        for (row, values) in self.values.chunks_exact_mut(width).enumerate() {
            if part.sum[row] == 0.0 {
                continue; // The row sees nothing of the segment.
            }
            let (max, sum) = (&mut self.max[row], &mut self.sum[row]);
            merge_row(level, max, sum, values, part.max[row], part.sum[row], &part.values[row * width..][..width]);
        }
    }
}

dispatch! {
    fn merge_row(max: &mut f32, sum: &mut f32, values: &mut [f32], part_max: f32, part_sum: f32, part_values: &[f32])
        = merge_body
}

#[inline(always)]
fn merge_body<S: Simd>(
    max: &mut f32,
    sum: &mut f32,
    values: &mut [f32],
    part_max: f32,
    part_sum: f32,
    part_values: &[f32],
) {
    let larger = if part_max > *max { part_max } else { *max };
    let (old, new) = (exp::<S>(*max - larger), exp::<S>(part_max - larger));
    *max = larger;
    *sum = fma::<S>(*sum, old, part_sum * new);
    for (value, part) in values.iter_mut().zip(part_values) {
        *value = fma::<S>(*value, old, part * new);
    }
}

dispatch! {
    /// Turns a row's scores of a tile into weights relative to the largest score so far, 0 outside `seen`; adds them
    /// to `sums` lane by lane, and rescales what was summed before if the largest score rose.
    fn softmax_row(
        scores: &mut [f32; TILE],
        seen: Range<usize>,
        softcap: Option<f32>,
        max: &mut f32,
        sums: &mut [f32; TILE],
        values: &mut [f32],
    ) = softmax_body
}

#[inline(always)]
fn softmax_body<S: Simd>(
    scores: &mut [f32; TILE],
    seen: Range<usize>,
    softcap: Option<f32>,
    max: &mut f32,
    sums: &mut [f32; TILE],
    values: &mut [f32],
) {
    if let Some(cap) = softcap {
        for score in scores.iter_mut() {
            *score = cap * tanh::<S>(*score / cap);
        }
    }
    let (from, to) = (seen.start as u32, seen.end as u32);
    for (j, score) in scores.iter_mut().enumerate() {
        let j = j as u32;
        *score = if j >= from && j < to { *score } else { f32::NEG_INFINITY };
    }
    let largest = largest(scores);
    if largest > *max {
        // Nothing was summed before the first: a factor would do no harm, nor any good.
        if *max > f32::NEG_INFINITY {
            let factor = exp::<S>(*max - largest);
            sums.iter_mut().for_each(|s| *s *= factor);
            values.iter_mut().for_each(|v| *v *= factor);
        }
        *max = largest;
    }
    let max = *max;
    for (score, sum) in scores.iter_mut().zip(sums) {
        *score = exp::<S>(*score - max);
        *sum += *score;
    }
}

/// NaN is passed over: it comes out of the weights all the same.
#[inline(always)]
fn largest(scores: &[f32; TILE]) -> f32 {
    let mut lanes = *scores;
    let mut width = TILE / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i + width] > lanes[i] { lanes[i + width] } else { lanes[i] };
        }
        width /= 2;
    }
    lanes[0]
}
