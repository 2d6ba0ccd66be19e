//! The kernels for AVX2 with FMA: 8 outputs a vector. Integer products either by VNNI or in 16 bits.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::isa::{DenseKernel, Int8Kernel, by_packing};
use super::packing::Packing;
use super::panel::{BLOCK, PANEL, PanelLayout, STRIPE, SUPER};
use super::quantize::{self, ActBlock};
use crate::quant::{BlockFormat, E2M1, GgmlType};

/// 4 rows: 4 float and up to 8 integer accumulators, of the 16 registers.
pub(super) const TILE_ROWS: usize = 4;

pub(super) fn int8_kernel(packing: Packing, rows: usize) -> Int8Kernel {
    let kernels: [Int8Kernel; TILE_ROWS] = by_packing!(packing, blocks, int8, [1, 2, 3, 4]);
    kernels[rows - 1]
}

pub(super) fn int8_vnni_kernel(packing: Packing, rows: usize) -> Int8Kernel {
    let kernels: [Int8Kernel; TILE_ROWS] = by_packing!(packing, blocks, int8_vnni, [1, 2, 3, 4]);
    kernels[rows - 1]
}

pub(super) fn dense_kernel(packing: Packing, rows: usize) -> DenseKernel {
    let kernels: [DenseKernel; TILE_ROWS] = by_packing!(packing, floats, dense, [1, 2, 3, 4]);
    kernels[rows - 1]
}

/// [`quantize::quantize_tile`] of [`ActBlock::quantize`].
#[target_feature(enable = "avx2")]
pub(super) fn quantize_tile(x: &[f32], cols: usize, out: &mut [MaybeUninit<ActBlock>]) {
    // SAFETY: the instructions are enabled here.
    quantize::quantize_tile(x, cols, out, |x| unsafe { quantize_block(x) });
}

/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn quantize_block(x: &[f32; BLOCK]) -> ActBlock {
    // SAFETY: the caller's promise; loads are of the block's four quarters, and the store is of 32 bytes.
    unsafe {
        let x: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.as_ptr().add(8 * i)));
        let mask = _mm256_set1_epi32(quantize::MAGNITUDE as i32);
        let magnitudes = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), mask));
        let pairs = [_mm256_max_epu32(magnitudes[0], magnitudes[1]), _mm256_max_epu32(magnitudes[2], magnitudes[3])];
        let mut lanes = [0u32; 8];
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_max_epu32(pairs[0], pairs[1]));
        let (scale, inverse) = quantize::scale_of(lanes.into_iter().fold(0, u32::max));
        let q = x.map(|x| _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse))));
        let words = [_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3])];
        // Packing interleaves the 128-bit lanes of its operands, in fours of bytes after two steps.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order);
        let mut codes = [0i8; BLOCK];
        _mm256_storeu_si256(codes.as_mut_ptr().cast(), bytes);
        ActBlock::new(codes, scale, sum(words[0]), sum(words[1]))
    }
}

/// The sum of 16 words.
///
/// # Safety
/// The CPU must have AVX2.
#[inline(always)]
unsafe fn sum(words: __m256i) -> i32 {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
        let sums = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
        let sums = _mm_add_epi32(sums, _mm_shuffle_epi32::<0b00_00_11_10>(sums));
        _mm_cvtsi128_si32(_mm_add_epi32(sums, _mm_shuffle_epi32::<0b00_00_00_01>(sums)))
    }
}

/// [`super::portable::int8`] for packing `T` and `R` rows, without VNNI.
#[target_feature(enable = "avx2,fma,f16c")]
fn int8<const T: usize, const R: usize>(every: usize, panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
    for part in 0..PANEL / 8 {
        // SAFETY: the instructions are enabled here.
        unsafe { eight_rows::<T, R, Words<R>>(part, every, panel, x, out) };
    }
}

/// [`super::portable::int8`] for packing `T` and `R` rows, with VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn int8_vnni<const T: usize, const R: usize>(every: usize, panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
    for part in 0..PANEL / 8 {
        // SAFETY: the instructions are enabled here.
        unsafe { eight_rows::<T, R, Vnni<R>>(part, every, panel, x, out) };
    }
}

/// Sums of products of unsigned codes and signed activations, for `R` rows of activations and 8 of weights.
///
/// # Safety
/// Of all functions: the CPU must have AVX2, and VNNI for [`Vnni`]. They are inlined into functions that enable them.
trait Dot<const R: usize> {
    unsafe fn zero() -> Self;
    /// Adds the products of four columns, at most 8 times. `bits`: 4 if no code is above 15, else 8.
    unsafe fn add(&mut self, bits: usize, w: __m256i, x: [i32; R]);
    unsafe fn sum(&self, bits: usize, row: usize) -> __m256i;
}

struct Vnni<const R: usize>([__m256i; R]);

impl<const R: usize> Dot<R> for Vnni<R> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        Vnni([unsafe { _mm256_setzero_si256() }; R])
    }

    #[inline(always)]
    unsafe fn add(&mut self, _: usize, w: __m256i, x: [i32; R]) {
        for (dot, x) in self.0.iter_mut().zip(x) {
            // SAFETY: the caller's promise.
            *dot = unsafe { _mm256_dpbusd_avx_epi32(*dot, w, _mm256_set1_epi32(x)) };
        }
    }

    #[inline(always)]
    unsafe fn sum(&self, _: usize, row: usize) -> __m256i {
        self.0[row]
    }
}

/// In 16 bits, nibble by nibble: a pair of products is at most 2 * 15 * 127, and 8 of them at most 30,480.
struct Words<const R: usize> {
    low: [__m256i; R],
    /// Only of codes of 8 bits.
    high: [__m256i; R],
}

impl<const R: usize> Dot<R> for Words<R> {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's promise.
        let zero = unsafe { _mm256_setzero_si256() };
        Words { low: [zero; R], high: [zero; R] }
    }

    #[inline(always)]
    unsafe fn add(&mut self, bits: usize, w: __m256i, x: [i32; R]) {
        // SAFETY: the caller's promise.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let low = if bits == 8 { _mm256_and_si256(w, mask) } else { w };
            let high = _mm256_and_si256(_mm256_srli_epi16::<4>(w), mask);
            for (r, x) in x.into_iter().enumerate() {
                let x = _mm256_set1_epi32(x);
                self.low[r] = _mm256_add_epi16(self.low[r], _mm256_maddubs_epi16(low, x));
                if bits == 8 {
                    self.high[r] = _mm256_add_epi16(self.high[r], _mm256_maddubs_epi16(high, x));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(&self, bits: usize, row: usize) -> __m256i {
        // SAFETY: the caller's promise.
        unsafe {
            let low = _mm256_madd_epi16(self.low[row], _mm256_set1_epi16(1));
            if bits == 4 {
                return low;
            }
            _mm256_add_epi32(low, _mm256_madd_epi16(self.high[row], _mm256_set1_epi16(16)))
        }
    }
}

/// Outputs `8 part .. 8 part + 8` of the panel.
///
/// # Safety
/// The CPU must have AVX2, FMA, F16C and what `D` needs.
#[inline(always)]
unsafe fn eight_rows<const T: usize, const R: usize, D: Dot<R>>(
    part: usize,
    every: usize,
    panel: &[u8],
    x: &[ActBlock],
    out: &mut [[f32; PANEL]],
) {
    let layout = const { PanelLayout::of(Packing::at(T)) }.with_groups(every);
    let format = layout.format;
    // Of the integers, which codes of 4 bits may only stand for.
    let bits = if format.fp4 { 8 } else { format.bits };
    let (x, odd) = x.as_chunks::<R>();
    assert!(odd.is_empty() && out.len() == R && panel.len() == layout.panel_bytes(x.len()) && part < PANEL / 8);
    // SAFETY: the instructions are the caller's promise. Over the whole loop `at` advances by exactly
    // `panel_bytes(x.len())`, the panel's length, and what is read lies between it and its next value.
    unsafe {
        let mut acc = [_mm256_setzero_ps(); R];
        let (mut factor, mut min_factor) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        let mut offset = _mm256_setzero_si256();
        let mut at = panel.as_ptr();
        for (index, x) in x.iter().enumerate() {
            if format.nested && index.is_multiple_of(SUPER) {
                factor = halves(at.add(16 * part));
                if format.has_min {
                    min_factor = halves(at.add(2 * PANEL + 16 * part));
                }
                at = at.add(layout.header);
            }
            if format.grouped && index.is_multiple_of(layout.every) {
                factor = _mm256_loadu_ps(at.add(32 * part).cast());
                offset = _mm256_cvtepi16_epi32(_mm_loadu_si128(at.add(4 * PANEL + 16 * part).cast()));
                at = at.add(layout.header);
            }
            let scales = at;
            let block = at.add(if format.has_min { 2 * layout.scales } else { layout.scales });
            at = block.add(layout.codes);
            for g in 0..BLOCK / format.group {
                let (scale, min) = match (format.nested, format.has_min) {
                    (false, false) if format.grouped => (factor, _mm256_setzero_ps()),
                    (false, false) if format.fp4 => (upper_halves(scales.add(16 * part)), _mm256_setzero_ps()),
                    (false, false) => (halves(scales.add(16 * part)), _mm256_setzero_ps()),
                    (false, true) => (halves(scales.add(16 * part)), halves(scales.add(layout.scales + 16 * part))),
                    (true, has_min) => {
                        let at = scales.add(g * PANEL + 8 * part);
                        let min = if has_min { small(at.add(layout.scales)) } else { _mm256_setzero_ps() };
                        (_mm256_mul_ps(factor, small(at)), _mm256_mul_ps(min_factor, min))
                    }
                };
                let mut dot = D::zero();
                for vector in g * format.group / 4..(g + 1) * format.group / 4 {
                    let w = codes(&format, block.add(32 * part), vector);
                    dot.add(bits, w, std::array::from_fn(|r| x[r].four(vector)));
                }
                for (r, x) in x.iter().enumerate() {
                    let (neg_sum, scaled_sum) = x.sums(format.group, g);
                    let mut sum = dot.sum(bits, r);
                    if format.grouped {
                        sum = _mm256_add_epi32(sum, _mm256_mullo_epi32(offset, _mm256_set1_epi32(neg_sum)));
                    } else if format.offset != 0 {
                        sum = _mm256_add_epi32(sum, _mm256_set1_epi32(format.offset * neg_sum));
                    }
                    let scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_set1_ps(x.scale));
                    acc[r] = _mm256_fmadd_ps(scaled, scale, acc[r]);
                    if format.has_min {
                        acc[r] = _mm256_fmadd_ps(min, _mm256_set1_ps(scaled_sum), acc[r]);
                    }
                }
            }
        }
        for (out, acc) in out.iter_mut().zip(acc) {
            _mm256_storeu_ps(out.as_mut_ptr().add(8 * part), acc);
        }
    }
}

/// 8 rows' codes for columns `4 vector .. 4 vector + 4`.
///
/// # Safety
/// The CPU must have AVX2; `block` must point to the codes of a block, or a multiple of 32 bytes less than [`STRIPE`] into them.
#[inline(always)]
unsafe fn codes(format: &BlockFormat, block: *const u8, vector: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        if format.bits == 8 {
            return _mm256_loadu_si256(block.add(STRIPE * vector).cast());
        }
        let nibbles = _mm256_loadu_si256(block.add(STRIPE * (vector % 4)).cast());
        let nibbles = if vector < 4 { nibbles } else { _mm256_srli_epi16::<4>(nibbles) };
        let codes = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
        if !format.fp4 {
            return codes;
        }
        _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(E2M1.as_ptr().cast())), codes)
    }
}

/// 8 halves as f32.
///
/// # Safety
/// The CPU must have F16C; `at` must point to 16 readable bytes.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// 8 bf16s, which are the upper halves of f32s, as f32.
///
/// # Safety
/// The CPU must have AVX2; `at` must point to 16 readable bytes.
#[inline(always)]
unsafe fn upper_halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast())))) }
}

/// 8 signed bytes as f32.
///
/// # Safety
/// The CPU must have AVX2; `at` must point to 8 readable bytes.
#[inline(always)]
unsafe fn small(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// [`super::portable::dense`] for packing `T` and `R` rows.
#[target_feature(enable = "avx2,fma,f16c")]
fn dense<const T: usize, const R: usize>(
    panel: &[u8],
    scales: &[f32; PANEL],
    x: &[f32],
    stride: usize,
    out: &mut [[f32; PANEL]],
) {
    let packing = const { Packing::at(T) };
    let size = packing.element_bytes();
    let cols = panel.len() / (PANEL * size);
    assert!(out.len() == R && panel.len() == cols * PANEL * size && x.len() >= (R - 1) * stride + cols);
    for lane in (0..PANEL).step_by(16) {
        // SAFETY: `scales` and `out[r]` are 32 floats; columns up to `cols` of `R` rows are within the panel and `x`, as
        // asserted.
        unsafe {
            let scales = two_vectors(scales, lane);
            let mut acc: [[__m256; 2]; R] = std::array::from_fn(|r| two_vectors(&out[r], lane));
            for col in 0..cols {
                let at = panel.as_ptr().add((col * PANEL + lane) * size);
                let w = [dense_vector(packing, at, scales[0]), dense_vector(packing, at.add(8 * size), scales[1])];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.as_ptr().add(r * stride + col));
                    *acc = [_mm256_fmadd_ps(x, w[0], acc[0]), _mm256_fmadd_ps(x, w[1], acc[1])];
                }
            }
            for (out, acc) in out.iter_mut().zip(acc) {
                _mm256_storeu_ps(out.as_mut_ptr().add(lane), acc[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(lane + 8), acc[1]);
            }
        }
    }
}

/// Floats `lane .. lane + 16`.
///
/// # Safety
/// The CPU must have AVX2; `lane` must be at most 16.
#[inline(always)]
unsafe fn two_vectors(floats: &[f32; PANEL], lane: usize) -> [__m256; 2] {
    // SAFETY: the caller's promise.
    unsafe { [_mm256_loadu_ps(floats.as_ptr().add(lane)), _mm256_loadu_ps(floats.as_ptr().add(lane + 8))] }
}

/// 8 elements of a packing of floats as f32, times `scales` if it has scales.
///
/// # Safety
/// The CPU must have AVX2 and F16C; `at` must point to 8 readable elements.
#[inline(always)]
unsafe fn dense_vector(packing: Packing, at: *const u8, scales: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        match packing {
            Packing::Ggml(GgmlType::F16) => halves(at),
            Packing::Ggml(GgmlType::BF16) => upper_halves(at),
            Packing::E4M3 => _mm256_mul_ps(e4m3(at), scales),
            _ => _mm256_loadu_ps(at.cast()),
        }
    }
}

/// 8 E4M3 codes as [`crate::quant::e4m3_as_half`] has them.
///
/// # Safety
/// The CPU must have AVX2 and F16C; `at` must point to 8 readable bytes.
#[inline(always)]
unsafe fn e4m3(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let wide = _mm_slli_epi16::<7>(_mm_cvtepi8_epi16(_mm_loadl_epi64(at.cast())));
        _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16(0xbf80u16 as i16)))
    }
}
