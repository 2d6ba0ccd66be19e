//! Brings the rows of packed matrices into the order in which a GPU's kernels read them: codes stay codes, and f32 scales
//! keep 16 significant bits ([`scale_word`]). How they lie there is the kernels' business ([`Layout`]); what codes mean is
//! [`crate::quant`]'s.

use candle_core::{Error, Result};
use plimsoll_kernels::packed::{Layout, scale_word};

use super::RowSource;
use super::footprint::layout;
use crate::operand::Shared;
use crate::par::parallel_for;
use crate::quant::{Codes, GgmlType, RowFormat, check_row};

/// Rows of a tile.
const TILE: usize = 16;

/// A matrix as a kernel reads it.
pub(super) struct Laid {
    pub(super) layout: Layout,
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<u8>,
}

/// The rows of all sources, one after the other; `None` where they are not of one format that a kernel reads.
///
/// # Errors
/// A source is no matrix, or a row holds what is not a number.
pub(super) fn lay(sources: &[RowSource<'_>]) -> Result<Option<Laid>> {
    let (rows, columns) = super::check_sources(sources)?;
    let format = sources[0].format;
    let alike = sources.iter().all(|source| source.format == format && source.order.is_none());
    let Some(layout) = layout(format, rows, columns).filter(|_| alike) else { return Ok(None) };
    let stored: Vec<&[u8]> = sources.iter().flat_map(RowSource::stored_rows).collect();
    stored.iter().try_for_each(|row| check_row(format, row)).map_err(Error::msg)?;
    if !stored.iter().all(|row| zeros_fit(format, row)) {
        return Ok(None);
    }
    let (code_bytes, scale_bytes) = (layout.tile_code_bytes(), layout.tile_scale_bytes());
    let mut laid = Laid { layout, codes: vec![0; layout.code_bytes()], scales: vec![0; layout.scale_bytes()] };
    let (codes, scales) = (Shared::new(&mut laid.codes), Shared::new(&mut laid.scales));
    parallel_for(layout.tiles(), |tile| {
        let rows = &stored[tile * TILE..stored.len().min((tile + 1) * TILE)];
        let (mut tile_codes, mut tile_scales) = (Vec::new(), Vec::new());
        rows.iter().for_each(|row| unpack(format, row, &mut tile_codes, &mut tile_scales));
        // SAFETY: each tile has a part of its own.
        let (codes, scales) = unsafe {
            let at = |bytes: usize| tile * bytes..(tile + 1) * bytes;
            (codes.part(at(code_bytes)), scales.part(at(scale_bytes)))
        };
        layout.lay_codes(&tile_codes, codes);
        layout.lay_scales(&tile_scales, scales);
    });
    Ok(Some(laid))
}

/// Kernels keep the code that stands for zero in a byte, and that of four bits as 128 more in bf16, which counts by ones
/// up to 256.
fn zeros_fit(format: RowFormat, row: &[u8]) -> bool {
    let RowFormat::Grouped(format) = format else { return true };
    let most = match format.codes {
        Codes::Int4 => 128,
        Codes::Int8 => 255,
        Codes::E4M3 => return true,
    };
    format.groups(row).all(|group| (0..=most).contains(&group.zero))
}

/// Appends a row's codes, one a byte, and what its groups are scaled by.
fn unpack(format: RowFormat, row: &[u8], codes: &mut Vec<u8>, scales: &mut Vec<u32>) {
    match format {
        RowFormat::Ggml(_) => {
            for block in row.chunks_exact(GgmlType::MXFP4.block_bytes()) {
                scales.push(block[0].into());
                codes.extend(block[1..].iter().map(|pair| pair & 15));
                codes.extend(block[1..].iter().map(|pair| pair >> 4));
            }
        }
        RowFormat::Grouped(format) => {
            for group in format.groups(row) {
                scales.push(scale_word(group.scale, group.zero as u8));
                match format.codes {
                    Codes::Int4 => codes.extend(group.codes.iter().flat_map(|pair| [pair & 15, pair >> 4])),
                    Codes::Int8 | Codes::E4M3 => codes.extend(group.codes),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Grouped, encode_row};
    use crate::testing::Random;

    const FORMATS: [RowFormat; 4] = [
        RowFormat::Ggml(GgmlType::MXFP4),
        RowFormat::Grouped(Grouped { codes: Codes::Int4, group: 32 }),
        RowFormat::Grouped(Grouped { codes: Codes::Int8, group: 96 }),
        RowFormat::Grouped(Grouped { codes: Codes::E4M3, group: 64 }),
    ];

    fn rows(format: RowFormat, rows: usize, columns: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = Vec::new();
        (0..rows).for_each(|_| encode_row(format, &random.normals(columns, 1.0), &mut bytes).unwrap());
        bytes
    }

    #[test]
    fn parts_lie_as_one_matrix_does() {
        let mut random = Random::new(91);
        for format in FORMATS {
            let bytes = rows(format, 40, 96, &mut random);
            let row = format.row_bytes(96).unwrap();
            let whole = lay(&[RowSource::new(format, 40, 96, &bytes)]).unwrap().unwrap();
            let (first, rest) = bytes.split_at(13 * row);
            let parts = [RowSource::new(format, 13, 96, first), RowSource::new(format, 27, 96, rest)];
            let parts = lay(&parts).unwrap().unwrap();
            assert_eq!((whole.layout.rows, whole.layout.columns), (40, 96), "{format}");
            assert_eq!(whole.layout, parts.layout);
            assert!(whole.codes == parts.codes && whole.scales == parts.scales, "{format}");
            assert!(whole.codes.iter().any(|byte| *byte != 0) && whole.scales.iter().any(|byte| *byte != 0));
        }
    }

    #[test]
    fn what_no_kernel_reads_is_left_alone() {
        let mut random = Random::new(92);
        let bytes = rows(FORMATS[1], 16, 64, &mut random);
        let source = RowSource::new(FORMATS[1], 16, 64, &bytes);
        let order: Vec<u32> = (0..64).rev().collect();
        assert!(lay(&[source]).unwrap().is_some());
        assert!(lay(&[source.in_order(Some(&order))]).unwrap().is_none());
        let dense = vec![0; 16 * 64 * 2];
        let dense = RowSource::new(GgmlType::F16, 16, 64, &dense);
        assert!(lay(&[dense]).unwrap().is_none() && lay(&[source, dense]).unwrap().is_none());
        let odd = vec![0; 12 * FORMATS[0].row_bytes(64).unwrap()];
        assert!(lay(&[RowSource::new(FORMATS[0], 12, 64, &odd)]).unwrap().is_none());
    }

    #[test]
    fn zeros_are_those_that_kernels_decode() {
        let mut random = Random::new(93);
        let is_laid = |format, bytes: &[u8]| lay(&[RowSource::new(format, 16, 96, bytes)]).unwrap().is_some();
        for (format, most) in [(FORMATS[1], 128i16), (FORMATS[2], 255)] {
            let mut bytes = rows(format, 16, 96, &mut random);
            for (zero, fits) in [(-1, false), (0, true), (most, true), (most + 1, false)] {
                bytes[4..6].copy_from_slice(&zero.to_le_bytes());
                assert_eq!(is_laid(format, &bytes), fits, "{format}: zero {zero}");
            }
        }
    }

    #[test]
    fn a_tile_s_first_words_are_known() {
        // Row 0 holds the codes 0, 1, .., 15, twice; what the kernels' header says of nibbles.
        let mut block = vec![127];
        block.extend((0..16u8).map(|i| i | i << 4));
        let mut bytes = block.clone();
        bytes.extend(vec![0; 17 * 7]);
        let laid = lay(&[RowSource::new(GgmlType::MXFP4, 8, 32, &bytes)]).unwrap().unwrap();
        let word = |at: usize| u32::from_le_bytes(laid.codes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16)), (0x7531_6420, 0xfdb9_eca8));
        assert_eq!(laid.scales[0], 127);
    }
}
