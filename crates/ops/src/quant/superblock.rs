//! Blocks of 256 whose groups have small integer scales of their own ("K-quants"): Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

use super::{Block, half_at, pair_at};

/// 16 groups of 16: scale in the low and minimum in the high nibble of a byte; codes of 2 bits.
pub(super) fn q2_k(bytes: &[u8], out: &mut Block) {
    let (scales, quants) = (&bytes[..16], &bytes[16..80]);
    out.d = pair_at(bytes, 80);
    out.m = -half_at(bytes, 82);
    for (g, &byte) in scales.iter().enumerate() {
        out.scales[g] = (byte & 15) as i8;
        out.mins[g] = (byte >> 4) as i8;
    }
    two_bits(quants, &mut out.codes);
}

/// 16 groups of 16 with signed 6-bit scales; codes of 3 bits, the third in a mask of its own.
pub(super) fn q3_k(bytes: &[u8], out: &mut Block) {
    let (high, quants, scales) = (&bytes[..32], &bytes[32..96], &bytes[96..108]);
    out.d = pair_at(bytes, 108);
    for g in 0..16 {
        let low = scales[g % 8] >> (4 * (g / 8)) & 15;
        let top = scales[8 + g % 4] >> (2 * (g / 4)) & 3;
        out.scales[g] = (low | top << 4) as i8 - 32;
    }
    two_bits(quants, &mut out.codes);
    for (i, code) in out.codes.iter_mut().enumerate() {
        *code |= (high[i % 32] >> (i / 32) & 1) << 2;
    }
}

/// 8 groups of 32 with 6-bit scales and minimums; codes of 4 bits.
pub(super) fn q4_k(bytes: &[u8], out: &mut Block) {
    six_bit_scales(bytes, out);
    nibbles(&bytes[16..144], &mut out.codes);
}

/// As [`q4_k`], with a fifth bit of each code in a mask.
pub(super) fn q5_k(bytes: &[u8], out: &mut Block) {
    six_bit_scales(bytes, out);
    let high = &bytes[16..48];
    nibbles(&bytes[48..176], &mut out.codes);
    for (i, code) in out.codes.iter_mut().enumerate() {
        *code |= (high[i % 32] >> (i / 32) & 1) << 4;
    }
}

/// 16 groups of 16 with signed 8-bit scales; codes of 6 bits, the upper two apart.
pub(super) fn q6_k(bytes: &[u8], out: &mut Block) {
    let (low, high, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
    out.d = pair_at(bytes, 208);
    for (g, &byte) in scales.iter().enumerate() {
        out.scales[g] = byte as i8;
    }
    // Each half of the block is four runs of 32: two in the low nibbles of 64 bytes, two in the high ones.
    for (i, code) in out.codes.iter_mut().enumerate() {
        let (half, run, at) = (i / 128, i % 128 / 32, i % 32);
        let nibble = low[64 * half + 32 * (run % 2) + at] >> (4 * (run / 2)) & 15;
        let top = high[32 * half + at] >> (2 * run) & 3;
        *code = nibble | top << 4;
    }
}

/// Each 32 bytes hold four runs of 32 elements, two bits a run.
fn two_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = bytes[32 * (i / 128) + i % 32] >> (2 * (i % 128 / 32)) & 3;
    }
}

/// Each 32 bytes hold two runs of 32 elements: the low nibbles, then the high ones.
fn nibbles(bytes: &[u8], codes: &mut [u8; 256]) {
    for (i, code) in codes.iter_mut().enumerate() {
        *code = bytes[32 * (i / 64) + i % 32] >> (4 * (i % 64 / 32)) & 15;
    }
}

/// The head of Q4_K and Q5_K: two halves, then 8 scales and 8 minimums of 6 bits in 12 bytes. The first four of each are
/// the low 6 bits of a byte; the others have their low nibbles in the last 4 bytes and their upper two bits on top of
/// the first 8 bytes.
fn six_bit_scales(bytes: &[u8], out: &mut Block) {
    out.d = pair_at(bytes, 0);
    out.m = -half_at(bytes, 2);
    let packed = &bytes[4..16];
    for g in 0..4 {
        out.scales[g] = (packed[g] & 63) as i8;
        out.mins[g] = (packed[4 + g] & 63) as i8;
        out.scales[4 + g] = (packed[8 + g] & 15 | packed[g] >> 6 << 4) as i8;
        out.mins[4 + g] = (packed[8 + g] >> 4 | packed[4 + g] >> 6 << 4) as i8;
    }
}
