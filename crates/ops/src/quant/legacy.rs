//! Blocks of 32 with one or two halves in front: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0; and MXFP4, with an exponent
//! there.

use half::bf16;

use super::{Block, half_at, pair_at};

pub(super) fn q4_0(bytes: &[u8], out: &mut Block) {
    out.d = pair_at(bytes, 0);
    nibbles(&bytes[2..], &mut out.codes);
}

pub(super) fn q4_1(bytes: &[u8], out: &mut Block) {
    out.d = pair_at(bytes, 0);
    out.m = half_at(bytes, 2);
    nibbles(&bytes[4..], &mut out.codes);
}

pub(super) fn q5_0(bytes: &[u8], out: &mut Block) {
    out.d = pair_at(bytes, 0);
    nibbles(&bytes[6..], &mut out.codes);
    fifth_bits(&bytes[2..6], &mut out.codes);
}

pub(super) fn q5_1(bytes: &[u8], out: &mut Block) {
    out.d = pair_at(bytes, 0);
    out.m = half_at(bytes, 2);
    nibbles(&bytes[8..], &mut out.codes);
    fifth_bits(&bytes[4..8], &mut out.codes);
}

/// Signed bytes; the code is the byte + 128.
pub(super) fn q8_0(bytes: &[u8], out: &mut Block) {
    out.d = pair_at(bytes, 0);
    for (code, &byte) in out.codes.iter_mut().zip(&bytes[2..34]) {
        *code = byte ^ 0x80;
    }
}

/// A power of two (E8M0), and floats of 4 bits (E2M1), which are read as twice their value. An exponent of 255 is not a
/// number.
pub(super) fn mxfp4(bytes: &[u8], out: &mut Block) {
    out.d = half_of_power(bytes[0]).to_le_bytes();
    nibbles(&bytes[1..], &mut out.codes);
}

/// `2^(exponent - 128)`, exact.
fn half_of_power(exponent: u8) -> bf16 {
    match exponent {
        // Below the normal numbers.
        0 | 1 => bf16::from_bits(0x20 << exponent),
        255 => bf16::NAN,
        _ => bf16::from_bits(u16::from(exponent - 1) << 7),
    }
}

/// Byte `i` holds element `i` in its low and element `i + 16` in its high nibble.
fn nibbles(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, &byte) in bytes[..16].iter().enumerate() {
        codes[i] = byte & 15;
        codes[i + 16] = byte >> 4;
    }
}

/// Bit `i` of the little-endian word is bit 4 of element `i`.
fn fifth_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes[..32].iter_mut().enumerate() {
        *code |= (bytes[i / 8] >> (i % 8) & 1) << 4;
    }
}
