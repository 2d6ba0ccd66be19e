//! What differs between CPUs: the vector width, whether multiply-add is fused, and `exp` on top of that.
//!
//! Code is written once as `body::<S>` over [`Simd`]; [`dispatch!`] compiles it for each level and picks at run time.
//! Plain element-wise loops need no intrinsics here: inside a level's `#[target_feature]` function they vectorise.
//! It must never know an op, a shape or a tensor.

use std::sync::OnceLock;

/// Instruction sets that bodies are compiled for, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The above, and AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Level {
    /// The widest level of this CPU.
    pub(crate) fn detect() -> Level {
        static LEVEL: OnceLock<Level> = OnceLock::new();
        *LEVEL.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                let avx2 = is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c");
                let avx512 = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl");
                if avx2 && avx512 {
                    return Level::Avx512;
                }
                if avx2 {
                    return Level::Avx2;
                }
            }
            Level::Portable
        })
    }

    /// This CPU's levels, for tests that compare them.
    #[cfg(test)]
    pub(crate) fn available() -> impl Iterator<Item = Level> {
        [Level::Portable, Level::Avx2, Level::Avx512].into_iter().filter(|l| *l <= Level::detect())
    }
}

/// One level's vectors of f32.
///
/// # Safety
/// The methods may run only where [`Level::detect`] reached the implementor's level; pointers need `LANES` elements
/// behind them, at any alignment.
pub(crate) trait Simd: Copy {
    /// Multiply-add is one instruction with one rounding.
    const FMA: bool;
    /// AVX2 and F16C intrinsics may run.
    const AVX2: bool;
    const LANES: usize;
    /// Vectors side by side in the register tile of a matrix product.
    const TILE_VECTORS: usize;
    type V: Copy;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn store(v: Self::V, to: *mut f32);
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Each lane of `v` if it is no less than its lane of `least`, else 0.
    unsafe fn at_least(v: Self::V, least: Self::V) -> Self::V;
}

/// Defines `fn name(level, args..)`, which runs `body::<S>(args..)` compiled for that level.
/// `body` must be `#[inline(always)]`, as must all that it calls and that should use the level's instructions.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$t:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?
     = $body:ident) => {
        $(#[$meta])*
        $vis fn $name $(<$t: $bound>)? (level: $crate::simd::Level, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::simd::Avx512 $(, $t)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$t: $bound>)? ($($arg: $ty),*) $(-> $ret)? {
                $body::<$crate::simd::Avx2 $(, $t)?>($($arg),*)
            }
            assert!(level <= $crate::simd::Level::detect(), "this CPU is below {level:?}");
            match level {
                // SAFETY: the assertion above: the CPU has these instructions.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => $body::<$crate::simd::Portable $(, $t)?>($($arg),*),
            }
        }
    };
}
pub(crate) use dispatch;

/// Any CPU: what the compiler makes of plain loops.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    // Elsewhere it would be a call into libm for every element.
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    const AVX2: bool = false;
    const LANES: usize = 4;
    const TILE_VECTORS: usize = 2;
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller has 4 elements there.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(v: Self::V, to: *mut f32) {
        // SAFETY: the caller has 4 elements there.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        [0, 1, 2, 3].map(|i| fma::<Self>(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        [0, 1, 2, 3].map(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn at_least(v: Self::V, least: Self::V) -> Self::V {
        [0, 1, 2, 3].map(|i| if v[i] >= least[i] { v[i] } else { 0.0 })
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Simd;

    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512;

    impl Simd for Avx2 {
        const FMA: bool = true;
        const AVX2: bool = true;
        const LANES: usize = 8;
        const TILE_VECTORS: usize = 2;
        type V = __m256;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: the trait's contract gives the instructions and the elements.
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(v: Self::V, to: *mut f32) {
            // SAFETY: the trait's contract gives the instructions and the elements.
            unsafe { _mm256_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn at_least(v: Self::V, least: Self::V) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm256_and_ps(v, _mm256_cmp_ps::<_CMP_GE_OQ>(v, least)) }
        }
    }

    impl Simd for Avx512 {
        const FMA: bool = true;
        const AVX2: bool = true;
        const LANES: usize = 16;
        const TILE_VECTORS: usize = 4;
        type V = __m512;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self::V {
            // SAFETY: the trait's contract gives the instructions and the elements.
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn store(v: Self::V, to: *mut f32) {
            // SAFETY: the trait's contract gives the instructions and the elements.
            unsafe { _mm512_storeu_ps(to, v) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn at_least(v: Self::V, least: Self::V) -> Self::V {
            // SAFETY: the trait's contract gives the instructions.
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(v, least), v) }
        }
    }
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn fma<S: Simd>(a: f32, b: f32, c: f32) -> f32 {
    if S::FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` within 2 units in the last place; below -86.5 it is 0 (the true value is under 2.8e-38), above 88.72 it is
/// infinite; NaN stays NaN. Branch-free, so that loops over it vectorise, and the same to the bit in every lane.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: f32) -> f32 {
    /// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the high one has few enough bits for `n * LN2_HIGH` to be exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = (std::f64::consts::LN_2 - 355.0 / 512.0) as f32;
    // Comparisons written so that NaN falls through.
    let bounded = if x > 89.0 { 89.0 } else { x };
    let bounded = if bounded < -87.0 { -87.0 } else { bounded };
    let shifted = fma::<S>(bounded, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<S>(n, -LN2_LOW, fma::<S>(n, -LN2_HIGH, bounded));
    // The Taylor series on |r| <= ln(2)/2: what is left out is below 6e-9 of the result.
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = fma::<S>(sum, r, coefficient);
    }
    // 2^(n-1) and then twice that, for n up to 128.
    let half_scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(126 << 23));
    let value = sum * half_scale * 2.0;
    if x < -86.5 { 0.0 } else { value }
}

/// Hyperbolic tangent, within 2e-7 absolutely.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: f32) -> f32 {
    1.0 - 2.0 / (exp::<S>(x + x) + 1.0)
}

/// Sums of many terms are kept in this many lanes, whatever the vector width, so that the order of additions is one.
pub(crate) const SUM_LANES: usize = 16;

/// The lanes' sum, by halves.
#[inline(always)]
pub(crate) fn sum_lanes(mut lanes: [f32; SUM_LANES]) -> f32 {
    let mut width = SUM_LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(always)]
    fn map_exp<S: Simd>(values: &mut [f32]) {
        for v in values {
            *v = exp::<S>(*v);
        }
    }
    dispatch!(fn exp_all(values: &mut [f32]) = map_exp);

    #[inline(always)]
    fn map_tanh<S: Simd>(values: &mut [f32]) {
        for v in values {
            *v = tanh::<S>(*v);
        }
    }
    dispatch!(fn tanh_all(values: &mut [f32]) = map_tanh);

    /// Every 97th float from -87 to 88.7 and back through zero.
    fn sweep() -> Vec<f32> {
        let to = 88.7f32.to_bits();
        let positive = (0..=to).step_by(977).map(f32::from_bits);
        positive.clone().chain(positive.map(|x| -x).filter(|x| *x >= -86.5)).collect()
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for level in Level::available() {
            let inputs = sweep();
            let mut outputs = inputs.clone();
            exp_all(level, &mut outputs);
            for (x, y) in inputs.iter().zip(&outputs) {
                let exact = f64::from(*x).exp();
                let nearest = exact as f32;
                let ulp = f64::from(f32::from_bits(nearest.to_bits() + 1)) - f64::from(nearest);
                let error = (f64::from(*y) - exact).abs() / ulp;
                assert!(error < 2.0, "{level:?}: exp({x}) = {y}, {error} ulp off");
            }
        }
    }

    #[test]
    fn exp_of_extremes() {
        for level in Level::available() {
            let mut v = [0.0, -0.0, f32::NEG_INFINITY, -1e30, -86.6, f32::INFINITY, 1e30, 89.5, f32::NAN, -f32::NAN];
            exp_all(level, &mut v);
            assert_eq!(&v[..8], [1.0, 1.0, 0.0, 0.0, 0.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(v[8].is_nan() && v[9].is_nan());
        }
    }

    #[test]
    fn tanh_error_is_bounded() {
        for level in Level::available() {
            let inputs = sweep();
            let mut outputs = inputs.clone();
            tanh_all(level, &mut outputs);
            for (x, y) in inputs.iter().zip(&outputs) {
                assert!((f64::from(*y) - f64::from(*x).tanh()).abs() < 2e-7, "{level:?}: tanh({x}) = {y}");
            }
            let mut v = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
            tanh_all(level, &mut v);
            assert_eq!(&v[..2], [1.0, -1.0]);
            assert!(v[2].is_nan());
        }
    }

    #[test]
    fn a_value_has_the_same_bits_in_every_lane() {
        for level in Level::available() {
            for x in [-3.7f32, 0.1, 12.5] {
                for len in 1..40 {
                    let mut v = vec![x; len];
                    exp_all(level, &mut v);
                    assert!(v.iter().all(|y| y.to_bits() == v[0].to_bits()));
                    let mut one = [x];
                    exp_all(level, &mut one);
                    assert_eq!(one[0].to_bits(), v[0].to_bits());
                }
            }
        }
    }
}
