//! The kernels for AVX-512 with VNNI: 16 outputs a vector, 64 integer products an instruction.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::isa::{DenseKernel, Int8Kernel, by_packing};
use super::packing::Packing;
use super::panel::{BLOCK, PANEL, PanelLayout, STRIPE, SUPER};
use super::quantize::{self, ActBlock};
use crate::quant::{BlockFormat, E2M1, GgmlType};

/// 8 rows: 16 integer accumulators of the 32 registers. The float ones take 16 too and spend a block's time in memory.
pub(super) const TILE_ROWS: usize = 8;

/// How many bytes ahead the kernels for several rows ask for weights: a panel, that is what the next call starts with, so
/// that memory is read while this panel is multiplied with the other rows; but not more than a part of the L2 cache. With
/// one row there is nothing to wait for but memory, and the hardware's own prefetching is better.
const PREFETCH: usize = 128 << 10;

pub(super) fn int8_kernel(packing: Packing, rows: usize) -> Int8Kernel {
    let kernels: [Int8Kernel; TILE_ROWS] = by_packing!(packing, blocks, int8, [1, 2, 3, 4, 5, 6, 7, 8]);
    kernels[rows - 1]
}

pub(super) fn dense_kernel(packing: Packing, rows: usize) -> DenseKernel {
    let kernels: [DenseKernel; TILE_ROWS] = by_packing!(packing, floats, dense, [1, 2, 3, 4, 5, 6, 7, 8]);
    kernels[rows - 1]
}

/// [`quantize::quantize_tile`] of [`ActBlock::quantize`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn quantize_tile(x: &[f32], cols: usize, out: &mut [MaybeUninit<ActBlock>]) {
    // SAFETY: the instructions are enabled here.
    quantize::quantize_tile(x, cols, out, |x| unsafe { quantize_block(x) });
}

/// # Safety
/// The CPU must have AVX-512.
#[inline(always)]
unsafe fn quantize_block(x: &[f32; BLOCK]) -> ActBlock {
    // SAFETY: the caller's promise; loads are of the block's two halves, and a vector of codes is 16 bytes.
    unsafe {
        let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
        let magnitudes =
            x.map(|x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(quantize::MAGNITUDE as i32)));
        let largest = _mm512_reduce_max_epu32(_mm512_max_epu32(magnitudes[0], magnitudes[1]));
        let (scale, inverse) = quantize::scale_of(largest);
        let inverse = _mm512_set1_ps(inverse);
        let low = _mm512_cvtps_epi32(_mm512_mul_ps(x[0], inverse));
        let high = _mm512_cvtps_epi32(_mm512_mul_ps(x[1], inverse));
        let mut codes = [0i8; BLOCK];
        _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(low));
        _mm_storeu_si128(codes.as_mut_ptr().add(16).cast(), _mm512_cvtepi32_epi8(high));
        ActBlock::new(codes, scale, _mm512_reduce_add_epi32(low), _mm512_reduce_add_epi32(high))
    }
}

/// [`super::portable::int8`] for packing `T` and `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8<const T: usize, const R: usize>(every: usize, panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
    let layout = const { PanelLayout::of(Packing::at(T)) }.with_groups(every);
    let format = layout.format;
    let (x, odd) = x.as_chunks::<R>();
    assert!(odd.is_empty() && out.len() == R && panel.len() == layout.panel_bytes(x.len()));
    // SAFETY: the instructions are enabled here. Over the whole loop `at` advances by exactly `panel_bytes(x.len())`,
    // the panel's length, and what is read lies between it and its next value. Stores are to the 32 floats of `out[r]`.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        let mut factors = [[_mm512_setzero_ps(); 2]; 2];
        let mut zeros = [_mm512_setzero_si512(); 2];
        let ahead = panel.len().min(PREFETCH);
        let mut at = panel.as_ptr();
        for (index, x) in x.iter().enumerate() {
            if format.nested && index.is_multiple_of(SUPER) {
                factors[0] = halves(at);
                if format.has_min {
                    factors[1] = halves(at.add(2 * PANEL));
                }
                at = at.add(layout.header);
            }
            if format.grouped && index.is_multiple_of(layout.every) {
                factors[0] = floats(at);
                zeros = [words(at.add(4 * PANEL)), words(at.add(4 * PANEL + 32))];
                at = at.add(layout.header);
            }
            let scales = at;
            let codes = at.add(if format.has_min { 2 * layout.scales } else { layout.scales });
            at = codes.add(layout.codes);
            if R > 1 {
                for line in (0..layout.block_bytes()).step_by(64) {
                    _mm_prefetch::<_MM_HINT_T1>(scales.wrapping_add(ahead + line).cast());
                }
            }
            for group in 0..BLOCK / format.group {
                let dots = dots::<T, R>(codes, zeros, x, group);
                let scale = group_scale::<T>(scales, group, factors[0]);
                let min = match format.has_min {
                    true => group_scale::<T>(scales.add(layout.scales), group, factors[1]),
                    false => [_mm512_setzero_ps(); 2],
                };
                for ((acc, dots), x) in acc.iter_mut().zip(dots).zip(x) {
                    let (x_scale, x_sum) = (_mm512_set1_ps(x.scale), _mm512_set1_ps(x.sums(format.group, group).1));
                    for half in 0..2 {
                        let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[half]), x_scale);
                        acc[half] = _mm512_fmadd_ps(scaled, scale[half], acc[half]);
                        if format.has_min {
                            acc[half] = _mm512_fmadd_ps(min[half], x_sum, acc[half]);
                        }
                    }
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            _mm512_storeu_ps(out.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), acc[1]);
        }
    }
}

/// The sums of products of one group of columns, in integers. `zeros`: what the rows' codes are less, where groups have
/// their own.
///
/// # Safety
/// The CPU must have the instructions of [`int8`]; `codes` must point to the codes of a block of packing `T`.
#[inline(always)]
unsafe fn dots<const T: usize, const R: usize>(
    codes: *const u8,
    zeros: [__m512i; 2],
    x: &[ActBlock; R],
    group: usize,
) -> [[__m512i; 2]; R] {
    let format = const { PanelLayout::of(Packing::at(T)) }.format;
    // SAFETY: the caller's promise. Stripes 0 .. 8 of 8 bits, or 0 .. 4 of 4 bits, are the codes of the block.
    unsafe {
        let mut dots = [[_mm512_setzero_si512(); 2]; R];
        if format.offset != 0 || format.grouped {
            let zeros = if format.grouped { zeros } else { [_mm512_set1_epi32(format.offset); 2] };
            for (dot, x) in dots.iter_mut().zip(x) {
                let neg_sum = _mm512_set1_epi32(x.sums(format.group, group).0);
                *dot = zeros.map(|zeros| _mm512_mullo_epi32(neg_sum, zeros));
            }
        }
        let stripes = format.group / 4;
        for stripe in group * stripes..(group + 1) * stripes {
            let w = [four_columns(&format, codes, stripe), four_columns(&format, codes.add(64), stripe)];
            for (dot, x) in dots.iter_mut().zip(x) {
                let x = _mm512_set1_epi32(x.four(stripe));
                dot[0] = _mm512_dpbusd_epi32(dot[0], w[0], x);
                dot[1] = _mm512_dpbusd_epi32(dot[1], w[1], x);
            }
        }
        dots
    }
}

/// 16 rows' codes for columns `4 index .. 4 index + 4`.
///
/// # Safety
/// The CPU must have AVX-512; `codes` must point to the codes of a block, or 64 bytes into them.
#[inline(always)]
unsafe fn four_columns(format: &BlockFormat, codes: *const u8, index: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        if format.bits == 8 {
            return _mm512_loadu_si512(codes.add(STRIPE * index).cast());
        }
        let nibbles = _mm512_loadu_si512(codes.add(STRIPE * (index % 4)).cast());
        let nibbles = if index < 4 { nibbles } else { _mm512_srli_epi16::<4>(nibbles) };
        let codes = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
        if !format.fp4 {
            return codes;
        }
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(E2M1.as_ptr().cast())), codes)
    }
}

/// The scales, or the minimums, of the panel's rows for one group of columns; `factor` is what stands in the header.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to the scales or minimums of a block of packing `T`.
#[inline(always)]
unsafe fn group_scale<const T: usize>(at: *const u8, group: usize, factor: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let format = const { PanelLayout::of(Packing::at(T)) }.format;
        if format.grouped {
            return factor;
        }
        if format.fp4 {
            return [upper_halves(at), upper_halves(at.add(32))];
        }
        if !format.nested {
            return halves(at);
        }
        let small = |at: *const u8| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())));
        let at = at.add(group * PANEL);
        [_mm512_mul_ps(factor[0], small(at)), _mm512_mul_ps(factor[1], small(at.add(16)))]
    }
}

/// 32 halves as f32.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to 64 readable bytes.
#[inline(always)]
unsafe fn halves(at: *const u8) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm512_cvtph_ps(_mm256_loadu_si256(at.cast())), _mm512_cvtph_ps(_mm256_loadu_si256(at.add(32).cast()))] }
}

/// 32 floats.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to 128 readable bytes.
#[inline(always)]
unsafe fn floats(at: *const u8) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm512_loadu_ps(at.cast()), _mm512_loadu_ps(at.add(64).cast())] }
}

/// 16 signed words as integers.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to 32 readable bytes.
#[inline(always)]
unsafe fn words(at: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi16_epi32(_mm256_loadu_si256(at.cast())) }
}

/// 16 E4M3 codes as [`crate::quant::e4m3_as_half`] has them.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to 16 readable bytes.
#[inline(always)]
unsafe fn e4m3(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())));
        _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16(0xbf80u16 as i16)))
    }
}

/// 16 bf16s, which are the upper halves of f32s, as f32.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to 32 readable bytes.
#[inline(always)]
unsafe fn upper_halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
    }
}

/// [`super::portable::dense`] for packing `T` and `R` rows.
#[target_feature(enable = "avx512f,avx512bw")]
fn dense<const T: usize, const R: usize>(
    panel: &[u8],
    scales: &[f32; PANEL],
    x: &[f32],
    stride: usize,
    out: &mut [[f32; PANEL]],
) {
    let packing = const { Packing::at(T) };
    let column = PANEL * packing.element_bytes();
    let cols = panel.len() / column;
    assert!(out.len() == R && panel.len() == cols * column && x.len() >= (R - 1) * stride + cols);
    // SAFETY: the instructions are enabled here; `scales` and `out[r]` are 32 floats; columns up to `cols` of `R` rows
    // are within the panel and `x`, as asserted.
    unsafe {
        let scales = floats(scales.as_ptr().cast());
        let mut acc: [[__m512; 2]; R] = std::array::from_fn(|r| floats(out[r].as_ptr().cast()));
        for col in 0..cols {
            let w = dense_column::<T>(panel.as_ptr().add(col * column), scales);
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*x.as_ptr().add(r * stride + col));
                *acc = [_mm512_fmadd_ps(x, w[0], acc[0]), _mm512_fmadd_ps(x, w[1], acc[1])];
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            _mm512_storeu_ps(out.as_mut_ptr(), acc[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(16), acc[1]);
        }
    }
}

/// A panel's column of a packing of floats as f32, times `scales` if it has scales.
///
/// # Safety
/// The CPU must have AVX-512; `at` must point to [`PANEL`] readable elements.
#[inline(always)]
unsafe fn dense_column<const T: usize>(at: *const u8, scales: [__m512; 2]) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        match const { Packing::at(T) } {
            Packing::Ggml(GgmlType::F16) => halves(at),
            Packing::Ggml(GgmlType::BF16) => [upper_halves(at), upper_halves(at.add(32))],
            Packing::E4M3 => [_mm512_mul_ps(e4m3(at), scales[0]), _mm512_mul_ps(e4m3(at.add(16)), scales[1])],
            _ => floats(at),
        }
    }
}
