//! Activations as int8: each block of 32 elements has one f32 scale, the largest magnitude / 127.

use crate::par::parallel_for;

use super::isa::Isa;
use super::panel::BLOCK;

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

/// 1.5 * 2^23: adding it leaves a small number, rounded to an integer (ties to even), in the low bits.
const ROUND: f32 = 12_582_912.0;

impl ActBlock {
    /// A block with a NaN or an infinity becomes one whose every product is NaN.
    #[inline(always)]
    pub(super) fn quantize(x: &[f32; BLOCK]) -> ActBlock {
        // Of magnitudes, the bits order as the numbers do, with infinity and NaN on top.
        let largest = f32::from_bits(x.iter().fold(0, |most, v| most.max(v.to_bits() & 0x7fff_ffff)));
        let (scale, inverse) = if !largest.is_finite() {
            (f32::NAN, 0.0)
        } else if largest < SMALLEST {
            (0.0, 0.0)
        } else {
            (largest / 127.0, 127.0 / largest)
        };
        let codes = x.map(|v| (v * inverse + ROUND).to_bits() as i8);
        let sum = |codes: &[i8]| codes.iter().map(|&c| i32::from(c)).sum::<i32>();
        let halves = [sum(&codes[..BLOCK / 2]), sum(&codes[BLOCK / 2..])];
        ActBlock {
            codes,
            scale,
            scaled_sum: scale * (halves[0] + halves[1]) as f32,
            scaled_half_sums: halves.map(|sum| scale * sum as f32),
            neg_sum: -halves[0] - halves[1],
            neg_half_sums: halves.map(|sum| -sum),
        }
    }
}

/// Quantizes `x`, rows of `cols` (a multiple of 32), for tiles of `tile_rows` rows: the result is `[tile][block][row]`,
/// the last tile having the rows that are left.
pub(super) fn quantize(isa: Isa, x: &[f32], cols: usize, tile_rows: usize) -> Vec<ActBlock> {
    let mut blocks: Vec<ActBlock> = Vec::with_capacity(x.len() / BLOCK);
    let spare = &mut blocks.spare_capacity_mut()[..x.len() / BLOCK];
    let per_tile = tile_rows * cols;
    let tiles: Vec<_> = x
        .chunks(per_tile)
        .zip(spare.chunks_mut(per_tile / BLOCK))
        .map(|(x, out)| std::sync::Mutex::new((x, out)))
        .collect();
    // One tile takes about a microsecond, which is what it would cost to hand it to another thread.
    let at_once = tiles.len().div_ceil(2 * crate::par::num_threads()).max(4);
    parallel_for(tiles.len().div_ceil(at_once), |task| {
        for tile in tiles.iter().skip(task * at_once).take(at_once) {
            let mut tile = tile.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (x, out) = &mut *tile;
            isa.quantize_tile(x, cols, out);
        }
    });
    drop(tiles);
    // SAFETY: every tile, and so every one of these elements, was written by `quantize_tile`.
    unsafe { blocks.set_len(x.len() / BLOCK) };
    blocks
}

/// The body of every instruction set's `quantize_tile`: safe code that the compiler vectorizes for each.
#[inline(always)]
pub(super) fn quantize_tile(x: &[f32], cols: usize, out: &mut [std::mem::MaybeUninit<ActBlock>]) {
    let rows = x.len() / cols;
    assert_eq!(out.len(), x.len() / BLOCK);
    for (row, x) in x.chunks_exact(cols).enumerate() {
        for (block, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
            out[block * rows + row].write(ActBlock::quantize(x));
        }
    }
}

impl ActBlock {
    /// `(neg_sum, scaled_sum)` of group `index` of `group` columns.
    pub(super) fn sums(&self, group: usize, index: usize) -> (i32, f32) {
        match group {
            BLOCK => (self.neg_sum, self.scaled_sum),
            _ => (self.neg_half_sums[index], self.scaled_half_sums[index]),
        }
    }
}
