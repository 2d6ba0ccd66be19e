//! Working memory of the kernel.

use std::cell::RefCell;

use super::kernel::{TILE, padded, partial_row_len};
use crate::simd::SUM_LANES;

/// A thread's working memory, kept between calls; whatever was there before is still there.
pub(super) struct Scratch<'a> {
    pub(super) queries: &'a mut [f32],
    pub(super) part: &'a mut [f32],
    pub(super) total: &'a mut [f32],
    pub(super) tile: TileScratch<'a>,
}

pub(super) struct TileScratch<'a> {
    /// `[dim, TILE]`
    pub(super) keys: &'a mut [f32],
    /// `[TILE, padded(dim)]`
    pub(super) values: &'a mut [f32],
    /// `[rows, TILE]`: scores, and then weights.
    pub(super) scores: &'a mut [f32],
    /// `[rows, TILE]`: the weights' sums of this segment, by lane.
    pub(super) sums: &'a mut [f32],
}

/// A cache line, so that vectors do not straddle two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; SUM_LANES]);

impl Scratch<'_> {
    pub(super) fn with(rows: usize, dim: usize, f: impl FnOnce(Scratch<'_>)) {
        thread_local!(static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) });
        let width = padded(dim);
        let state = rows * partial_row_len(dim);
        let lens = [rows * width, state, state, dim * TILE, TILE * width, rows * TILE, rows * TILE];
        LINES.with_borrow_mut(|lines| {
            let needed: usize = lens.iter().map(|len| len.div_ceil(SUM_LANES)).sum();
            if lines.len() < needed {
                lines.resize(needed, Line([0.0; SUM_LANES]));
            }
            let mut rest = &mut lines[..];
            let [queries, part, total, keys, values, scores, sums] = lens.map(|len| {
                let (taken, left) = std::mem::take(&mut rest).split_at_mut(len.div_ceil(SUM_LANES));
                rest = left;
                // SAFETY: a Line is its 16 floats and nothing else.
                let floats = unsafe {
                    std::slice::from_raw_parts_mut(taken.as_mut_ptr().cast::<f32>(), taken.len() * SUM_LANES)
                };
                &mut floats[..len]
            });
            f(Scratch { queries, part, total, tile: TileScratch { keys, values, scores, sums } });
        });
    }
}
