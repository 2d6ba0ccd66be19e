//! The kernels for AVX-512 with VNNI: 16 outputs a vector, 64 products an instruction.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::isa::{DenseKernel, Int8Kernel, by_type};
use super::panel::{PANEL, PanelLayout, SUPER};
use super::quantize::{self, ActBlock};
use crate::quant::GgmlType;

/// 8 rows: 8 integer and 8 float accumulators, and the rest of the 32 registers for weights and scales.
pub(super) const TILE_ROWS: usize = 8;

pub(super) fn int8_kernel(ty: GgmlType, rows: usize) -> Int8Kernel {
    let kernels: [Int8Kernel; TILE_ROWS] = by_type!(ty, quantized, int8, [1, 2, 3, 4, 5, 6, 7, 8]);
    kernels[rows - 1]
}

pub(super) fn dense_kernel(ty: GgmlType, rows: usize) -> DenseKernel {
    let kernels: [DenseKernel; TILE_ROWS] = by_type!(ty, dense, dense, [1, 2, 3, 4, 5, 6, 7, 8]);
    kernels[rows - 1]
}

#[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
pub(super) fn quantize_tile(x: &[f32], cols: usize, out: &mut [MaybeUninit<ActBlock>]) {
    quantize::quantize_tile(x, cols, out);
}

/// [`super::portable::int8`] for type `ALL[T]` and `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8<const T: usize, const R: usize>(panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
    let layout = const { PanelLayout::of(GgmlType::ALL[T]) };
    let format = layout.format;
    let (x, odd) = x.as_chunks::<R>();
    assert!(odd.is_empty() && out.len() == R && panel.len() == layout.panel_bytes(x.len()));
    let mut acc = [_mm512_setzero_ps(); R];
    let (mut factor, mut min_factor) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    let mut at = panel.as_ptr();
    for (index, x) in x.iter().enumerate() {
        // SAFETY: over the whole loop `at` advances by exactly `panel_bytes(x.len())`, the panel's length, and each
        // pointer is read before `at` passes it.
        let (block, scales) = unsafe {
            if format.nested && index.is_multiple_of(SUPER) {
                factor = halves(at);
                if format.has_min {
                    min_factor = halves(at.add(2 * PANEL));
                }
                at = at.add(layout.header);
            }
            let scales = at;
            let block = at.add(if format.has_min { 2 * layout.scales } else { layout.scales });
            at = block.add(layout.codes);
            (block, scales)
        };
        for g in 0..32 / format.group {
            // SAFETY: within the scales and minimums of this block.
            let (scale, min) = unsafe {
                let at = scales.add(g * PANEL);
                match (format.nested, format.has_min) {
                    (false, false) => (halves(scales), _mm512_setzero_ps()),
                    (false, true) => (halves(scales), halves(scales.add(layout.scales))),
                    (true, false) => (_mm512_mul_ps(factor, small(at)), _mm512_setzero_ps()),
                    (true, true) => {
                        (_mm512_mul_ps(factor, small(at)), _mm512_mul_ps(min_factor, small(at.add(layout.scales))))
                    }
                }
            };
            let mut dot = [_mm512_setzero_si512(); R];
            if format.offset != 0 {
                for (dot, x) in dot.iter_mut().zip(x) {
                    let neg_sum = _mm512_set1_epi32(x.sums(format.group, g).0);
                    *dot = _mm512_mullo_epi32(neg_sum, _mm512_set1_epi32(format.offset));
                }
            }
            for vector in g * format.group / 4..(g + 1) * format.group / 4 {
                // SAFETY: vectors 0 .. 8 of 8 bits, or 0 .. 4 of 4 bits, are the codes of this block.
                let w = unsafe { codes(format.bits, block, vector) };
                for (dot, x) in dot.iter_mut().zip(x) {
                    *dot = _mm512_dpbusd_epi32(*dot, w, _mm512_set1_epi32(four(x, vector)));
                }
            }
            for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_set1_ps(x.scale));
                *acc = _mm512_fmadd_ps(scaled, scale, *acc);
                if format.has_min {
                    *acc = _mm512_fmadd_ps(min, _mm512_set1_ps(x.sums(format.group, g).1), *acc);
                }
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: `out` is 16 floats; the store needs no alignment.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
    }
}

/// Activations `4 vector .. 4 vector + 4`, as the four bytes of an integer.
#[inline(always)]
fn four(x: &ActBlock, vector: usize) -> i32 {
    let at = 4 * vector;
    i32::from_le_bytes([x.codes[at] as u8, x.codes[at + 1] as u8, x.codes[at + 2] as u8, x.codes[at + 3] as u8])
}

/// 16 rows' codes for columns `4 vector .. 4 vector + 4`.
///
/// # Safety
/// `block` must point to the codes of a block.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn codes(bits: usize, block: *const u8, vector: usize) -> __m512i {
    let load = |index: usize| {
        // SAFETY: the caller's promise.
        unsafe { _mm512_loadu_si512(block.add(64 * index).cast()) }
    };
    if bits == 8 {
        return load(vector);
    }
    let nibbles = load(vector % 4);
    _mm512_and_si512(if vector < 4 { nibbles } else { _mm512_srli_epi16::<4>(nibbles) }, _mm512_set1_epi8(15))
}

/// 16 halves as f32.
///
/// # Safety
/// `at` must point to 32 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// 16 signed bytes as f32.
///
/// # Safety
/// `at` must point to 16 readable bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn small(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) }))
}

/// [`super::portable::dense`] for type `ALL[T]` and `R` rows.
#[target_feature(enable = "avx512f,avx512bw")]
fn dense<const T: usize, const R: usize>(panel: &[u8], x: &[f32], stride: usize, out: &mut [[f32; PANEL]]) {
    let ty = const { GgmlType::ALL[T] };
    let column = PANEL * ty.block_bytes();
    let cols = panel.len() / column;
    assert!(out.len() == R && panel.len() == cols * column && x.len() >= (R - 1) * stride + cols);
    // SAFETY: `out[r]` is 16 floats; the load needs no alignment.
    let mut acc: [__m512; R] = std::array::from_fn(|r| unsafe { _mm512_loadu_ps(out[r].as_ptr()) });
    for col in 0..cols {
        // SAFETY: columns up to `cols` of `R` rows are within the panel and `x`, by the assertion above.
        unsafe {
            let at = panel.as_ptr().add(col * column);
            let w = match ty {
                GgmlType::F16 => halves(at),
                GgmlType::BF16 => {
                    let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
                }
                _ => _mm512_loadu_ps(at.cast()),
            };
            for (r, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_fmadd_ps(_mm512_set1_ps(*x.as_ptr().add(r * stride + col)), w, *acc);
            }
        }
    }
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: as for the load.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
    }
}
