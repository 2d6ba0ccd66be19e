//! fp8 e4m3 as the OCP 8-bit floating point specification has it: no infinities, largest value 448.

/// The value of a code that is not NaN.
pub(crate) fn decode(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = if exponent == 0 { mantissa * 2f32.powi(-9) } else { (8.0 + mantissa) * 2f32.powi(exponent - 10) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest code, ties to even; beyond the largest value, that.
pub(crate) fn encode(x: f32) -> u8 {
    let distance = |code: u8| (decode(code) - x.abs()).abs();
    let nearest = (0..=0x7e).min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))));
    nearest.unwrap_or(0) | if x.is_sign_negative() { 0x80 } else { 0 }
}
