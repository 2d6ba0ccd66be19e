//! A tile of keys or values on its way from the paged cache to f32: gathered from their blocks, widened, and the keys
//! turned so that positions lie side by side.

use candle_core::WithDType;
use float8::F8E4M3;
use half::{bf16, f16};

use crate::e4m3;
use crate::simd::{Simd, dispatch};

use super::kernel::TILE;

/// What the cache may be made of.
pub(super) trait KvElement: WithDType {
    fn widen(self) -> f32;
    /// # Safety
    /// The CPU has AVX2 and F16C, and 8 elements are at `from`.
    #[cfg(target_arch = "x86_64")]
    unsafe fn widen8(from: *const Self) -> std::arch::x86_64::__m256;
}

/// The rows of `dim` elements of a tile's positions; `None` where no query looks.
pub(super) type TileRows<'a, T> = [Option<&'a [T]>; TILE];

/// Asks for rows that are needed soon. Blocks lie anywhere in memory, so the CPU cannot foresee the next one; without
/// this a decode step waits for memory most of its time.
pub(super) fn prefetch<T: KvElement>(rows: &TileRows<'_, T>) {
    #[cfg(target_arch = "x86_64")]
    for row in rows.iter().flatten() {
        for line in row.chunks(64 / size_of::<T>()) {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            // SAFETY: it reads nothing, and every x86-64 CPU has it.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = rows;
}

dispatch! {
    /// `out[d * TILE + j] = rows[j][d]`, zero where there is no row.
    pub(super) fn load_keys<T: KvElement>(rows: &TileRows<'_, T>, dim: usize, out: &mut [f32]) = keys_body
}
dispatch! {
    /// `out[j * stride + d] = rows[j][d]`; where there is no row, and beyond the row's length, `out` stays.
    pub(super) fn load_values<T: KvElement>(rows: &TileRows<'_, T>, stride: usize, out: &mut [f32]) = values_body
}

#[inline(always)]
fn keys_body<S: Simd, T: KvElement>(rows: &TileRows<'_, T>, dim: usize, out: &mut [f32]) {
    assert!(out.len() >= dim * TILE && rows.iter().flatten().all(|r| r.len() == dim));
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if S::AVX2 {
        // SAFETY: the level has AVX2 and F16C; lengths are as asserted above.
        unsafe { x86::turn_keys(rows, dim, out) };
        done = dim / 8 * 8;
    }
    for (j, row) in rows.iter().enumerate() {
        for d in done..dim {
            out[d * TILE + j] = row.map_or(0.0, |row| row[d].widen());
        }
    }
}

#[inline(always)]
fn values_body<S: Simd, T: KvElement>(rows: &TileRows<'_, T>, stride: usize, out: &mut [f32]) {
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(stride)) {
        let Some(row) = row else { continue };
        let out = &mut out[..row.len()];
        let mut done = 0;
        #[cfg(target_arch = "x86_64")]
        if S::AVX2 {
            // SAFETY: the level has AVX2 and F16C; both slices are of one length.
            unsafe { x86::widen_row(row, out) };
            done = row.len() / 8 * 8;
        }
        for (out, x) in out[done..].iter_mut().zip(&row[done..]) {
            *out = x.widen();
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{KvElement, TILE, TileRows};

    /// The dimensions of whole vectors of every row, 8 rows by 8 dimensions at a time.
    ///
    /// # Safety
    /// AVX2 and F16C; rows are of `dim` elements, `out` of `dim * TILE`.
    #[inline(always)]
    pub(super) unsafe fn turn_keys<T: KvElement>(rows: &TileRows<'_, T>, dim: usize, out: &mut [f32]) {
        for j in (0..TILE).step_by(8) {
            for d in (0..dim / 8 * 8).step_by(8) {
                // SAFETY: d + 8 <= dim, the row's length; the stores end at (d + 7) * TILE + j + 8 <= dim * TILE.
                unsafe {
                    let mut block = [_mm256_setzero_ps(); 8];
                    for (v, row) in block.iter_mut().zip(&rows[j..j + 8]) {
                        if let Some(row) = row {
                            *v = T::widen8(row.as_ptr().add(d));
                        }
                    }
                    for (i, v) in transpose(block).into_iter().enumerate() {
                        _mm256_storeu_ps(out.as_mut_ptr().add((d + i) * TILE + j), v);
                    }
                }
            }
        }
    }

    /// The whole vectors of a row.
    ///
    /// # Safety
    /// AVX2 and F16C; both are of one length.
    #[inline(always)]
    pub(super) unsafe fn widen_row<T: KvElement>(row: &[T], out: &mut [f32]) {
        for d in (0..row.len() / 8 * 8).step_by(8) {
            // SAFETY: d + 8 is within both.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(d), T::widen8(row.as_ptr().add(d))) };
        }
    }

    /// # Safety
    /// AVX2.
    #[inline(always)]
    unsafe fn transpose(r: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: register arithmetic that the caller's AVX2 has.
        unsafe {
            // Pairs, then fours within 128-bit halves, then the halves.
            let pair = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let ((a0, a1), (b0, b1)) = (pair(r[0], r[1]), pair(r[2], r[3]));
            let ((c0, c1), (d0, d1)) = (pair(r[4], r[5]), pair(r[6], r[7]));
            let low = |a, b| _mm256_shuffle_ps::<0b01_00_01_00>(a, b);
            let high = |a, b| _mm256_shuffle_ps::<0b11_10_11_10>(a, b);
            let top = [low(a0, b0), high(a0, b0), low(a1, b1), high(a1, b1)];
            let bottom = [low(c0, d0), high(c0, d0), low(c1, d1), high(c1, d1)];
            let mut out = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                out[i] = _mm256_permute2f128_ps::<0x20>(top[i], bottom[i]);
                out[i + 4] = _mm256_permute2f128_ps::<0x31>(top[i], bottom[i]);
            }
            out
        }
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen8(from: *const f32) -> std::arch::x86_64::__m256 {
        // SAFETY: the caller's word.
        unsafe { std::arch::x86_64::_mm256_loadu_ps(from) }
    }
}

impl KvElement for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen8(from: *const f16) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps};
        // SAFETY: the caller's word.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
}

impl KvElement for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen8(from: *const bf16) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        // SAFETY: the caller's word. A bf16 is the upper half of its f32.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))) }
    }
}

impl KvElement for F8E4M3 {
    #[inline(always)]
    fn widen(self) -> f32 {
        e4m3::decode(self.to_bits())
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen8(from: *const F8E4M3) -> std::arch::x86_64::__m256 {
        use std::arch::x86_64::*;
        /// An e4m3 is 2^8 times the f16 whose bits it has, once its exponent and mantissa stand where an f16's do.
        const BIASES: f32 = 256.0;
        const NAN_MAGNITUDE: i16 = 0x7f << 7;
        const F16_NAN: i16 = 0x7e00;
        // SAFETY: the caller's word.
        unsafe {
            let codes = _mm_cvtepu8_epi16(_mm_loadl_epi64(from.cast()));
            let sign = _mm_slli_epi16::<8>(_mm_and_si128(codes, _mm_set1_epi16(0x80)));
            let magnitude = _mm_slli_epi16::<7>(_mm_and_si128(codes, _mm_set1_epi16(0x7f)));
            let nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(NAN_MAGNITUDE));
            let nan = _mm_and_si128(nan, _mm_set1_epi16(F16_NAN));
            let bits = _mm_or_si128(_mm_or_si128(sign, magnitude), nan);
            _mm256_mul_ps(_mm256_cvtph_ps(bits), _mm256_set1_ps(BIASES))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Level;
    use crate::testing::Random;

    fn check<T: KvElement>(narrow: fn(f32) -> T) {
        let mut random = Random::new(51);
        for dim in [3, 8, 20, 64, 80] {
            let data: Vec<T> = random.normals(TILE * dim, 1.0).into_iter().map(narrow).collect();
            let rows: TileRows<'_, T> = std::array::from_fn(|j| (j % 5 != 2).then(|| &data[j * dim..][..dim]));
            for level in Level::available() {
                let (mut keys, mut values) = (vec![7.0; dim * TILE], vec![7.0; TILE * (dim + 3)]);
                load_keys(level, &rows, dim, &mut keys);
                load_values(level, &rows, dim + 3, &mut values);
                for (j, row) in rows.iter().enumerate() {
                    for d in 0..dim {
                        assert_eq!(keys[d * TILE + j], row.map_or(0.0, |r| r[d].widen()), "{level:?} {dim}");
                        assert_eq!(values[j * (dim + 3) + d], row.map_or(7.0, |r| r[d].widen()), "{level:?} {dim}");
                    }
                    assert_eq!(values[j * (dim + 3) + dim..][..3], [7.0; 3]);
                }
            }
        }
    }

    #[test]
    fn tiles_hold_what_the_cache_does() {
        check::<f32>(|x| x);
        check::<f16>(f16::from_f32);
        check::<bf16>(bf16::from_f32);
        check::<F8E4M3>(|x| F8E4M3::from_bits(e4m3::encode(x)));
    }

    #[test]
    fn every_fp8_code_is_widened_to_its_value() {
        let codes: Vec<F8E4M3> = (0..=255).map(F8E4M3::from_bits).collect();
        let mut rows: TileRows<'_, F8E4M3> = [None; TILE];
        rows[0] = Some(&codes);
        for level in Level::available() {
            let mut values = vec![0.0; TILE * codes.len()];
            load_values(level, &rows, codes.len(), &mut values);
            for (code, value) in (0..=255).zip(values) {
                let expected: f32 = e4m3::decode(code);
                assert!(value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(), "{code:#x}");
            }
        }
    }
}
