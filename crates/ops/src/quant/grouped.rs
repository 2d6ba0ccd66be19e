//! Codes under scales of their own: a row is groups of neighbours, as many as one likes, each with an f32 scale and (of
//! integers) an integer that stands for zero. The forms in which FP8, INT8 and INT4 checkpoints are published come to
//! this without loss: their scales are f32 or less, and their groups runs of columns or whole rows.
//!
//! A row's bytes are its groups, one after the other; the last may be shorter. A group is its scale (f32, little-endian),
//! for integers the zero (i16, little-endian), and the codes:
//!
//! - [`Codes::Int4`]: two a byte, the first in the low nibble; an element is `(code - zero) * scale`;
//! - [`Codes::Int8`]: one a byte, unsigned; the same;
//! - [`Codes::E4M3`]: one a byte: floats of 8 bits (OCP 8-bit Floating Point, v1.0); an element is `value * scale`.

use half::f16;

use crate::e4m3;

/// How the elements of a [`Grouped`] row are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codes {
    Int4,
    Int8,
    E4M3,
}

/// Rows of codes, of which every `group` columns share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grouped {
    pub codes: Codes,
    /// Columns; of integers a multiple of 32.
    pub group: usize,
}

/// One group of a row, taken apart.
pub(crate) struct Group<'a> {
    pub(crate) scale: f32,
    /// 0 where the format has none.
    pub(crate) zero: i16,
    /// As stored.
    pub(crate) codes: &'a [u8],
}

impl Codes {
    const fn bits(self) -> usize {
        match self {
            Codes::Int4 => 4,
            Codes::Int8 | Codes::E4M3 => 8,
        }
    }

    /// Bytes in front of a group's codes.
    const fn head_bytes(self) -> usize {
        match self {
            Codes::Int4 | Codes::Int8 => 6,
            Codes::E4M3 => 4,
        }
    }
}

impl Grouped {
    /// What a row's columns must be a multiple of.
    pub const fn column_step(self) -> usize {
        match self.codes {
            Codes::Int4 | Codes::Int8 => 32,
            Codes::E4M3 => 1,
        }
    }

    /// Bytes of a row of `cols` elements; `None` if the columns or the group do not fit the format, or the size
    /// overflows.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let step = self.column_step();
        if self.group == 0 || !self.group.is_multiple_of(step) || !cols.is_multiple_of(step) {
            return None;
        }
        let heads = cols.div_ceil(self.group).checked_mul(self.codes.head_bytes())?;
        heads.checked_add(cols.checked_mul(self.codes.bits())? / 8)
    }

    /// The groups of a row of whole length.
    pub(crate) fn groups(self, row: &[u8]) -> impl Iterator<Item = Group<'_>> {
        let head = self.codes.head_bytes();
        let whole = head + self.group * self.codes.bits() / 8;
        row.chunks(whole).map(move |bytes| {
            let (front, codes) = bytes.split_at(head);
            let zero = if head == 6 { i16::from_le_bytes([front[4], front[5]]) } else { 0 };
            Group { scale: f32::from_le_bytes([front[0], front[1], front[2], front[3]]), zero, codes }
        })
    }

    /// Appends a group to a row: `codes` as they are stored, `zero` for integers alone.
    pub fn push_group(self, row: &mut Vec<u8>, scale: f32, zero: i16, codes: impl IntoIterator<Item = u8>) {
        row.extend(scale.to_le_bytes());
        if self.codes != Codes::E4M3 {
            row.extend(zero.to_le_bytes());
        }
        row.extend(codes);
    }

    /// Refuses a row with a scale or an element that is no number, in words for the row.
    pub(super) fn check(self, row: &[u8]) -> Result<(), String> {
        for group in self.groups(row) {
            let is_scale = group.scale.abs() <= LARGEST_SCALE;
            if !is_scale {
                return Err(format!("has a scale of {}: it must be a number, and not too large", group.scale));
            }
            if self.codes == Codes::E4M3 && group.codes.iter().any(|code| code & 0x7f == 0x7f) {
                return Err("has an element that is not a number".into());
            }
        }
        Ok(())
    }

    pub(crate) fn dequantize(self, row: &[u8], out: &mut [f32]) {
        for (group, out) in self.groups(row).zip(out.chunks_mut(self.group)) {
            let integer = |code: u8| f32::from(i16::from(code) - group.zero) * group.scale;
            match self.codes {
                Codes::E4M3 => {
                    out.iter_mut().zip(group.codes).for_each(|(out, &code)| *out = e4m3::decode(code) * group.scale);
                }
                Codes::Int8 => out.iter_mut().zip(group.codes).for_each(|(out, &code)| *out = integer(code)),
                Codes::Int4 => {
                    for (pair, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(group.codes) {
                        *pair = [integer(byte & 15), integer(byte >> 4)];
                    }
                }
            }
        }
    }
}

/// No group's scale is larger: its product with the largest code, 448, is a number, too.
pub const LARGEST_SCALE: f32 = f32::MAX / 512.0;

/// What an E4M3 code stands for is so many times what [`e4m3_as_half`] gives.
pub(crate) const E4M3_UNIT: f32 = 256.0;

/// The half with an E4M3 code's sign, exponent and mantissa, whose exponents are biased by 8 more. Not for the two codes
/// that are no numbers.
#[inline(always)]
pub(crate) fn e4m3_as_half(code: u8) -> f16 {
    f16::from_bits(((code as i8 as u16) << 7) & 0xbf80)
}
