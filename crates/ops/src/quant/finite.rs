//! Whether rows' bytes stand for numbers: scales that are infinite or NaN, and elements of plain floats that are, make
//! everything that a layer gives out the same.
//!
//! Rows are looked at where they are packed anyway, so this reads no more than the scales need, and never a code.

use super::{GgmlType, RowFormat};

/// Refuses a row with a scale, or of floats an element, that is not a finite number.
///
/// # Errors
/// What is wrong, as said of the row: "has a scale ...".
pub(crate) fn check_row(format: RowFormat, row: &[u8]) -> Result<(), String> {
    let ty = match format {
        RowFormat::Grouped(format) => return format.check(row),
        RowFormat::Ggml(ty) => ty,
    };
    let block = ty.block_bytes();
    let is_finite = match ty {
        GgmlType::F32 => most::<4>(row, |[.., low, high]| i16::from_le_bytes([low, high]) & 0x7f80) < 0x7f80,
        GgmlType::F16 => most::<2>(row, |bytes| i16::from_le_bytes(bytes) & 0x7c00) < 0x7c00,
        GgmlType::BF16 => most::<2>(row, |bytes| i16::from_le_bytes(bytes) & 0x7f80) < 0x7f80,
        GgmlType::MXFP4 => row.chunks_exact(block).all(is_finite_mxfp4),
        _ => row.chunks_exact(block).all(|block| ty.halves().iter().all(|&at| is_finite_half(block, at))),
    };
    match is_finite {
        true => Ok(()),
        false if ty.block_len() == 1 => Err("has an element that is not a number: the file is corrupt".into()),
        false => Err("has a scale that is not a number: the file is corrupt".into()),
    }
}

/// The largest exponent of elements of `N` bytes; without a branch, so that a vector of them is looked at together.
fn most<const N: usize>(row: &[u8], exponent: impl Fn([u8; N]) -> i16) -> i16 {
    row.as_chunks::<N>().0.iter().fold(0, |most, bytes| most.max(exponent(*bytes)))
}

/// An exponent of E8M0, which may not be a number or too large for its codes, and two codes of E2M1 a byte.
fn is_finite_mxfp4(block: &[u8]) -> bool {
    // Up to 3, and up to 1.5.
    let largest_code = match block[0] {
        0..=252 => return true,
        253 => 5,
        254 => 3,
        255 => return false,
    };
    block[1..].iter().all(|pair| pair & 7 <= largest_code && pair >> 4 & 7 <= largest_code)
}

fn is_finite_half(block: &[u8], at: usize) -> bool {
    // The sign and the exponent are in the second byte.
    block[at + 1] & 0x7c != 0x7c
}

impl GgmlType {
    /// Where in a block its halves are: what its scales and minimums are multiplied with.
    const fn halves(self) -> &'static [usize] {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::BF16 | GgmlType::MXFP4 => &[],
            GgmlType::Q4_0 | GgmlType::Q5_0 | GgmlType::Q8_0 => &[0],
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
            GgmlType::Q2K => &[80, 82],
            GgmlType::Q3K => &[108],
            GgmlType::Q6K => &[208],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Codes, Grouped, dequantize_row};
    use super::*;

    /// Every byte of a row, one at a time, in every way that can make a scale or a product infinite or NaN: refused if, and
    /// only if, the row then has elements that are not numbers.
    #[test]
    fn what_is_refused_is_what_is_not_a_number() {
        for ty in GgmlType::ALL {
            let blocks = if ty.block_len() == 1 { 7 } else { 3 };
            // Codes that are not 0, from small to the largest, so that a factor that is no number shows.
            let fills: &[u8] = if ty == GgmlType::MXFP4 { &[0x11, 0xb3, 0x44, 0x5d, 0x66, 0x17] } else { &[0x11] };
            let mut values = vec![0.0; blocks * ty.block_len()];
            for (fill, at) in fills.iter().flat_map(|&fill| (0..blocks * ty.block_bytes()).map(move |at| (fill, at))) {
                for byte in [0x00, 0x7b, 0x7c, 0x7e, 0x7f, 0xfb, 0xfc, 0xfd, 0xfe, 0xff] {
                    let mut row = vec![fill; blocks * ty.block_bytes()];
                    row[at] = byte;
                    if ty.block_bytes() == 4 {
                        row[at / 4 * 4 + 2] |= 0x80; // the last bit of an f32's exponent
                    } else if ty == GgmlType::BF16 {
                        row[at / 2 * 2] |= 0x80;
                    }
                    dequantize_row(ty, &row, &mut values).unwrap();
                    let whole = values.iter().all(|value| value.is_finite());
                    assert_eq!(check_row(ty.into(), &row).is_ok(), whole, "{ty:?}: byte {at} is {byte:#x}");
                }
            }
        }
    }

    #[test]
    fn scales_of_groups_are_looked_at_too() {
        const MOST: f32 = super::super::LARGEST_SCALE;
        // The largest codes: 255 (and 15, with a zero far below) and 448.
        for (codes, zero, code) in [(Codes::Int8, 0, 0xff), (Codes::Int4, -128, 0xff), (Codes::E4M3, 0, 0x7e)] {
            let format = Grouped { codes, group: 32 };
            for (scale, whole) in [
                (1.0, true),
                (-1e-30, true),
                (MOST, true),
                (-MOST, true),
                (2.0 * MOST, false),
                (f32::NAN, false),
                (f32::INFINITY, false),
            ] {
                let mut row = Vec::new();
                let bytes = if codes == Codes::Int4 { 16 } else { 32 };
                format.push_group(&mut row, 1.0, zero, vec![code; bytes]);
                format.push_group(&mut row, scale, zero, vec![code; bytes]);
                assert_eq!(check_row(format.into(), &row).is_ok(), whole, "{codes:?}: {scale}");
                let mut values = [0.0; 64];
                dequantize_row(format, &row, &mut values).unwrap();
                assert!(!whole || values.iter().all(|value| value.is_finite()), "{codes:?}: {scale}");
            }
        }
    }
}
