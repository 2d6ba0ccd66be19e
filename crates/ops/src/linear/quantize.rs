//! Activations as int8: each block of 32 elements has one f32 scale, the largest magnitude / 127.

use std::mem::MaybeUninit;
use std::sync::{Mutex, PoisonError};

use super::isa::Isa;
use super::panel::BLOCK;
use crate::par::{num_threads, parallel_for};

/// One row's block of 32, with what kernels need of its sums: for the weights' offsets and for their minimums, over the
/// whole block and over each half, since weights have a scale for every 32 or every 16 columns. A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct ActBlock {
    pub(super) codes: [i8; BLOCK],
    pub(super) scale: f32,
    /// `scale` times the sum of the codes.
    pub(super) scaled_sum: f32,
    pub(super) scaled_half_sums: [f32; 2],
    /// Minus the sum of the codes.
    pub(super) neg_sum: i32,
    pub(super) neg_half_sums: [i32; 2],
}

/// Smaller blocks than this are taken for zero: 127 / it must not overflow.
const SMALLEST: f32 = 1e-30;

/// Elements that take some 2 us to quantize: with fewer it would cost as much to hand them to another thread.
const SMALLEST_TASK: usize = 16 << 10;

/// All bits of an f32 but the sign.
pub(super) const MAGNITUDE: u32 = 0x7fff_ffff;

/// The scale of a block and what its elements are multiplied with before they are rounded, given the bits of the
/// largest magnitude: of magnitudes, the bits order as the numbers do, with infinity and NaN on top.
///
/// A block with a NaN or an infinity becomes one whose every product is NaN.
#[inline(always)]
pub(super) fn scale_of(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        (f32::NAN, 0.0)
    } else if largest < SMALLEST {
        (0.0, 0.0)
    } else {
        (largest / 127.0, 127.0 / largest)
    }
}

impl ActBlock {
    /// Of codes whose halves have these sums. Where the scale is NaN, codes and sums are ignored: what a NaN is rounded
    /// to differs between instructions.
    #[inline(always)]
    pub(super) fn new(codes: [i8; BLOCK], scale: f32, low: i32, high: i32) -> ActBlock {
        let (codes, low, high) = if scale.is_nan() { ([0; BLOCK], 0, 0) } else { (codes, low, high) };
        ActBlock {
            codes,
            scale,
            scaled_sum: scale * (low + high) as f32,
            scaled_half_sums: [scale * low as f32, scale * high as f32],
            neg_sum: -(low + high),
            neg_half_sums: [-low, -high],
        }
    }

    /// Each element to the nearest step, ties to even.
    pub(super) fn quantize(x: &[f32; BLOCK]) -> ActBlock {
        let (scale, inverse) = scale_of(x.iter().fold(0, |most, v| most.max(v.to_bits() & MAGNITUDE)));
        let mut codes = [0; BLOCK];
        for (code, v) in codes.iter_mut().zip(x) {
            *code = (v * inverse).round_ties_even() as i8;
        }
        let (low, high) = codes.split_at(BLOCK / 2);
        let sum = |half: &[i8]| half.iter().map(|&code| i32::from(code)).sum();
        ActBlock::new(codes, scale, sum(low), sum(high))
    }

    /// Codes `4 index .. 4 index + 4`, as the bytes of an integer.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn four(&self, index: usize) -> i32 {
        let (fours, _) = self.codes.as_chunks::<4>();
        i32::from_le_bytes(fours[index].map(|code| code as u8))
    }

    /// `(neg_sum, scaled_sum)` of group `index` of `group` columns.
    #[inline(always)]
    pub(super) fn sums(&self, group: usize, index: usize) -> (i32, f32) {
        match group {
            BLOCK => (self.neg_sum, self.scaled_sum),
            _ => (self.neg_half_sums[index], self.scaled_half_sums[index]),
        }
    }
}

/// Quantizes `x`, rows of `cols` (a multiple of 32), for tiles of `tile_rows` rows: the result is `[tile][block][row]`,
/// the last tile having the rows that are left.
pub(super) fn quantize(isa: Isa, x: &[f32], cols: usize, tile_rows: usize) -> Vec<ActBlock> {
    let mut blocks: Vec<ActBlock> = Vec::with_capacity(x.len() / BLOCK);
    let spare = &mut blocks.spare_capacity_mut()[..x.len() / BLOCK];
    let per_tile = tile_rows * cols;
    let tiles: Vec<_> =
        x.chunks(per_tile).zip(spare.chunks_mut(per_tile / BLOCK)).map(|(x, out)| Mutex::new((x, out))).collect();
    let at_once = tiles.len().div_ceil(4 * num_threads()).max(SMALLEST_TASK / per_tile);
    parallel_for(tiles.len().div_ceil(at_once), |task| {
        for tile in tiles.iter().skip(task * at_once).take(at_once) {
            let mut tile = tile.lock().unwrap_or_else(PoisonError::into_inner);
            let (x, out) = &mut *tile;
            isa.quantize_tile(x, cols, out);
        }
    });
    drop(tiles);
    // SAFETY: every tile, and so every one of these elements, was written by `quantize_tile`.
    unsafe { blocks.set_len(x.len() / BLOCK) };
    blocks
}

/// The loop of every instruction set's `quantize_tile`: `x` is rows of `cols`, and `out`, as `[block][row]`, gets what
/// `quantize` makes of each block.
#[inline(always)]
pub(super) fn quantize_tile(
    x: &[f32],
    cols: usize,
    out: &mut [MaybeUninit<ActBlock>],
    quantize: impl Fn(&[f32; BLOCK]) -> ActBlock,
) {
    let rows = x.len() / cols;
    assert_eq!(out.len(), x.len() / BLOCK);
    for (row, x) in x.chunks_exact(cols).enumerate() {
        for (x, out) in x.as_chunks::<BLOCK>().0.iter().zip(out[row..].iter_mut().step_by(rows)) {
            out.write(quantize(x));
        }
    }
}
