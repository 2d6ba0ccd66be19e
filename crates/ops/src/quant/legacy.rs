//! Blocks of 32 with one or two halves in front: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

use super::{Block, half_at};

pub(super) fn q4_0(bytes: &[u8], out: &mut Block) {
    out.d = half_at(bytes, 0);
    nibbles(&bytes[2..], &mut out.codes);
}

pub(super) fn q4_1(bytes: &[u8], out: &mut Block) {
    out.d = half_at(bytes, 0);
    out.m = half_at(bytes, 2);
    nibbles(&bytes[4..], &mut out.codes);
}

pub(super) fn q5_0(bytes: &[u8], out: &mut Block) {
    out.d = half_at(bytes, 0);
    nibbles(&bytes[6..], &mut out.codes);
    fifth_bits(&bytes[2..6], &mut out.codes);
}

pub(super) fn q5_1(bytes: &[u8], out: &mut Block) {
    out.d = half_at(bytes, 0);
    out.m = half_at(bytes, 2);
    nibbles(&bytes[8..], &mut out.codes);
    fifth_bits(&bytes[4..8], &mut out.codes);
}

/// Signed bytes; the code is the byte + 128.
pub(super) fn q8_0(bytes: &[u8], out: &mut Block) {
    out.d = half_at(bytes, 0);
    for (code, &byte) in out.codes.iter_mut().zip(&bytes[2..34]) {
        *code = byte ^ 0x80;
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
