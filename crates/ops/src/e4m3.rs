//! fp8 e4m3 as the OCP 8-bit Floating Point Specification (revision 1.0) has it: four bits of exponent, three of mantissa,
//! no infinities, largest value 448, and one NaN a sign.
//!
//! Numbers alone: it must never know a tensor, a cache or a scale.

/// Largest value.
const MAX: f32 = 448.0;
/// Smallest value that is not subnormal, 2^-6.
const MIN_NORMAL: f32 = 1.0 / 64.0;
const NAN: u8 = 0x7f;

/// The value of every code.
static VALUES: [f32; 256] = values();

/// The value of a code, exact.
pub(crate) fn decode(code: u8) -> f32 {
    VALUES[usize::from(code)]
}

/// The nearest code, ties to even; beyond the largest value that, and of NaN the NaN. As a GPU rounds that is asked to
/// saturate (`__NV_SATFINITE`), but that the sign of a NaN is kept.
#[inline(always)]
pub(crate) fn encode(x: f32) -> u8 {
    /// A sum with it has an ulp of 2^-9, the smallest code's value.
    const SUBNORMAL_ULP: f32 = 16384.0;
    let magnitude = x.abs();
    let small = (magnitude + SUBNORMAL_ULP).to_bits().wrapping_sub(SUBNORMAL_ULP.to_bits());
    // Without a NaN's payload: a minimum of it and MAX would be MAX.
    let bits = if magnitude < MAX { magnitude } else { MAX }.to_bits();
    // Half an ulp of three bits of mantissa, less one where the lowest of them is even: ties go to even. Then the biases.
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    let large = rounded.wrapping_sub((127 - 7) << 3);
    let code = if magnitude < MIN_NORMAL { small } else { large };
    let code = if x.is_nan() { NAN } else { code as u8 };
    code | (x.to_bits() >> 24) as u8 & 0x80
}

const fn values() -> [f32; 256] {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 128 {
        let (exponent, mantissa) = (code as i32 >> 3, (code & 7) as f32);
        let magnitude = match exponent {
            _ if code == NAN as usize => f32::NAN,
            0 => mantissa * power_of_two(-9),
            _ => (8.0 + mantissa) * power_of_two(exponent - 10),
        };
        (values[code], values[code | 0x80]) = (magnitude, -magnitude);
        code += 1;
    }
    values
}

const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// By the definition: the nearest value, and of two as near the even code.
    fn nearest(x: f32) -> u8 {
        if x.is_nan() {
            return NAN;
        }
        // Far beyond all values they seem equally far.
        let x = f64::from(x.abs().min(1000.0));
        let distance = |code: u8| (f64::from(decode(code)) - x).abs();
        let by_distance = |a: &u8, b: &u8| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1)));
        (0..NAN).min_by(by_distance).unwrap()
    }

    #[track_caller]
    fn check(x: f32) {
        assert_eq!(encode(x), nearest(x), "{x:e}");
        assert_eq!(encode(-x), nearest(x) | 0x80, "{:e}", -x);
    }

    #[test]
    fn codes_are_those_of_the_specification() {
        for (code, value) in [(0, 0.0), (1, 2f32.powi(-9)), (7, 0.875 * 2f32.powi(-6)), (8, 2f32.powi(-6))] {
            assert_eq!(decode(code), value);
        }
        assert_eq!((decode(0x38), decode(0xb9), decode(0x7e), decode(0xfe)), (1.0, -1.125, 448.0, -448.0));
        assert!(decode(0x7f).is_nan() && decode(0xff).is_nan());
        for code in 0..=255 {
            assert_eq!(encode(decode(code)), code, "{code:#x}");
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_even() {
        for code in 0..0x7e {
            let tie = (decode(code) + decode(code + 1)) / 2.0;
            for x in [tie, f32::from_bits(tie.to_bits() + 1), f32::from_bits(tie.to_bits() - 1)] {
                check(x);
            }
        }
        for x in [0.0, 1e-45, 448.0, 463.9, 464.0, 480.0, 1e30, f32::INFINITY, f32::NAN, 2f32.powi(-10), 0.0156] {
            check(x.abs());
        }
        let mut random = Random::new(91);
        for scale in [1e-3, 1.0, 100.0] {
            random.normals(2000, scale).into_iter().for_each(|x| check(x.abs()));
        }
    }
}
