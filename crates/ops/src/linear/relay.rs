//! Brings the rows of packed matrices into the order in which a GPU's kernels read them: codes stay codes, scales of GGML's
//! blocks what they are, and f32 scales keep 16 significant bits ([`scale_word`]). How they lie there is the kernels'
//! business ([`Layout`]); what codes mean is [`crate::quant`]'s.

use std::sync::{Mutex, PoisonError};

use candle_core::{Error, Result};
use half::bf16;
use plimsoll_kernels::packed::{Format, Ggml, Layout, Scaling, TILE_ROWS, scale_word};

use super::RowSource;
use super::footprint::{self, layout};
use crate::operand::Shared;
use crate::par::parallel_for;
use crate::quant::{Block, Codes, GgmlType, RowFormat, check_row, dequantize_row};

/// A matrix as a kernel reads it.
pub(super) struct Laid {
    pub(super) layout: Layout,
    pub(super) codes: Vec<u8>,
    pub(super) scales: Vec<u8>,
    /// The input feature of each column, where they are not in order.
    pub(super) order: Option<Vec<u32>>,
}

/// The rows of all sources, one after the other, as few matrices: neighbours of one format and order are one, and what no
/// kernel decodes is bf16. `None` where none is packed, or one has sizes that kernels do not take.
///
/// # Errors
/// A source is no matrix, or a row holds what is not a number.
pub(super) fn lay(sources: &[RowSource<'_>]) -> Result<Option<Vec<Laid>>> {
    let (_, columns) = super::check_sources(sources)?;
    let runs = sources.chunk_by(|a, b| a.format == b.format && a.order == b.order);
    let runs: Vec<&[RowSource<'_>]> = runs.filter(|run| rows_of(run) != 0).collect();
    if !runs.iter().all(|run| footprint::widened(rows_of(run), columns).check().is_ok()) {
        return Ok(None);
    }
    let packed = runs.iter().map(|run| lay_run(run)).collect::<Result<Vec<_>>>()?;
    if packed.iter().all(Option::is_none) {
        return Ok(None);
    }
    packed
        .into_iter()
        .zip(runs)
        .map(|(packed, run)| packed.map_or_else(|| widen(run), Ok))
        .collect::<Result<_>>()
        .map(Some)
}

/// As [`lay`], as one matrix whose columns are in order; `None` where it would not be.
///
/// # Errors
/// As [`lay`].
pub(super) fn lay_alike(sources: &[RowSource<'_>]) -> Result<Option<Laid>> {
    super::check_sources(sources)?;
    let alike = sources.iter().all(|source| source.format == sources[0].format && source.order.is_none());
    if alike { lay_run(sources) } else { Ok(None) }
}

fn rows_of(sources: &[RowSource<'_>]) -> usize {
    sources.iter().map(|source| source.rows).sum()
}

/// Sources of one format and order; `None` where no kernel decodes it.
fn lay_run(sources: &[RowSource<'_>]) -> Result<Option<Laid>> {
    let RowSource { format, cols, order, .. } = sources[0];
    let Some(layout) = layout(format, rows_of(sources), cols) else { return Ok(None) };
    let stored: Vec<&[u8]> = sources.iter().flat_map(RowSource::stored_rows).collect();
    if !stored.iter().all(|row| zeros_fit(format, row)) {
        return Ok(None);
    }
    let (code_bytes, scale_bytes) = (layout.tile_code_bytes(), layout.tile_scale_bytes());
    let (mut codes, mut scales) = (vec![0; layout.code_bytes()], vec![0; layout.scale_bytes()]);
    let (all_codes, all_scales) = (Shared::new(&mut codes), Shared::new(&mut scales));
    let fault = Mutex::new(None);
    parallel_for(layout.tiles(), |tile| {
        let rows = &stored[tile * TILE_ROWS..stored.len().min((tile + 1) * TILE_ROWS)];
        if let Err(problem) = rows.iter().try_for_each(|row| check_row(format, row)) {
            *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
            return;
        }
        let (mut tile_codes, mut tile_scales) = (Vec::new(), Vec::new());
        rows.iter().for_each(|row| unpack(format, layout, row, &mut tile_codes, &mut tile_scales));
        // SAFETY: each tile has a part of its own.
        let (codes, scales) = unsafe {
            let at = |bytes: usize| tile * bytes..(tile + 1) * bytes;
            (all_codes.part(at(code_bytes)), all_scales.part(at(scale_bytes)))
        };
        layout.lay_tile(&tile_codes, &tile_scales, codes, scales);
    });
    no_fault(fault)?;
    Ok(Some(Laid { layout, codes, scales, order: order.map(<[u32]>::to_vec) }))
}

/// What threads found in rows that they read.
fn no_fault(found: Mutex<Option<String>>) -> Result<()> {
    found.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), |problem| Err(Error::msg(problem)))
}

/// Sources of one order as bf16, in the order of the input features.
fn widen(sources: &[RowSource<'_>]) -> Result<Laid> {
    let RowSource { format, cols, order, .. } = sources[0];
    let layout = footprint::widened(rows_of(sources), cols);
    let stored: Vec<&[u8]> = sources.iter().flat_map(RowSource::stored_rows).collect();
    let mut codes = vec![0; layout.code_bytes()];
    let all = Shared::new(&mut codes);
    let fault = Mutex::new(None);
    parallel_for(stored.len(), |row| {
        if let Err(problem) = check_row(format, stored[row]) {
            *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem);
            return;
        }
        let mut values = vec![0f32; cols];
        dequantize_row(format, stored[row], &mut values).expect("a row that was checked");
        if let Some(order) = order {
            RowSource::put_in_order(order, &mut values);
        }
        // SAFETY: each row has a part of its own.
        let out = unsafe { all.part(2 * row * cols..2 * (row + 1) * cols) };
        for (out, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
            *out = bf16::from_f32(value).to_ne_bytes();
        }
    });
    no_fault(fault)?;
    Ok(Laid { layout, codes, scales: Vec::new(), order: None })
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

/// Appends a row's codes, one a byte, and what [`Layout::lay_tile`] takes of its scales.
fn unpack(format: RowFormat, layout: Layout, row: &[u8], codes: &mut Vec<u8>, scales: &mut Vec<u32>) {
    match format {
        RowFormat::Ggml(GgmlType::MXFP4) => {
            for block in row.chunks_exact(GgmlType::MXFP4.block_bytes()) {
                scales.push(block[0].into());
                codes.extend(block[1..].iter().map(|pair| pair & 15));
                codes.extend(block[1..].iter().map(|pair| pair >> 4));
            }
        }
        RowFormat::Ggml(ty) => {
            let Format::Ggml(ggml) = layout.format else { unreachable!("{ty:?} has blocks, and is not MXFP4") };
            let mut block = Block::new();
            // GGML's codes of three bits are 4 where the kernels' are 8.
            let up = if ggml == Ggml::Q3K { 4 } else { 0 };
            let mut words = Words { of_chunks: Vec::new(), of_blocks: Vec::new() };
            for (index, bytes) in row.chunks_exact(ty.block_bytes()).enumerate() {
                block.read(ty, bytes);
                words.add(ggml, index, &block);
                codes.extend(block.codes[..ty.block_len()].iter().map(|code| code + up));
            }
            scales.extend(words.of_chunks);
            if ggml.scaling() != Scaling::Halves {
                scales.extend(words.of_blocks);
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

/// The words of a row's scales: see [`Scaling`].
struct Words {
    of_chunks: Vec<u32>,
    of_blocks: Vec<u32>,
}

impl Words {
    /// The row's next block.
    fn add(&mut self, ggml: Ggml, index: usize, block: &Block) {
        let (d, m) = (u32::from(u16::from_le_bytes(block.d)), u32::from(block.m.to_bits()));
        match ggml.scaling() {
            Scaling::Halves | Scaling::HalvesAndMinima => {
                if index.is_multiple_of(2) {
                    self.of_chunks.push(d);
                    self.of_blocks.push(m);
                } else {
                    self.of_chunks[index / 2] |= d << 16;
                    self.of_blocks[index / 2] |= m << 16;
                }
            }
            Scaling::Nested => {
                self.of_blocks.push(d);
                let (chunks, _) = block.scales.as_chunks::<4>();
                self.of_chunks.extend(chunks.iter().map(|scales| u32::from_le_bytes(scales.map(|scale| scale as u8))));
            }
            Scaling::NestedAndMinima => {
                self.of_blocks.push(d | m << 16);
                let pair = |group: usize| (block.scales[group] as u8, block.mins[group] as u8);
                let bytes: Vec<u8> = match ggml.group() {
                    16 => (0..16).map(pair).map(|(scale, min)| scale | min << 4).collect(),
                    _ => (0..8).map(pair).flat_map(|(scale, min)| [scale, min]).collect(),
                };
                self.of_chunks.extend(bytes.as_chunks().0.iter().map(|chunk| u32::from_le_bytes(*chunk)));
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

    /// The one matrix that sources become, if they do.
    fn one(sources: &[RowSource<'_>]) -> Option<Laid> {
        let laid = lay(sources).unwrap()?;
        assert_eq!(laid.len(), 1);
        laid.into_iter().next()
    }

    #[test]
    fn parts_lie_as_one_matrix_does() {
        let mut random = Random::new(91);
        for format in FORMATS {
            let bytes = rows(format, 40, 96, &mut random);
            let row = format.row_bytes(96).unwrap();
            let whole = one(&[RowSource::new(format, 40, 96, &bytes)]).unwrap();
            let (first, rest) = bytes.split_at(13 * row);
            let parts = [RowSource::new(format, 13, 96, first), RowSource::new(format, 27, 96, rest)];
            let parts = one(&parts).unwrap();
            assert_eq!((whole.layout.rows, whole.layout.columns), (40, 96), "{format}");
            assert_eq!(whole.layout, parts.layout);
            assert!(whole.codes == parts.codes && whole.scales == parts.scales, "{format}");
            assert!(whole.codes.iter().any(|byte| *byte != 0) && whole.scales.iter().any(|byte| *byte != 0));
        }
    }

    #[test]
    fn what_differs_is_apart_and_what_no_kernel_decodes_is_bf16() {
        let mut random = Random::new(92);
        let bytes = rows(FORMATS[1], 16, 64, &mut random);
        let source = RowSource::new(FORMATS[1], 16, 64, &bytes);
        let order: Vec<u32> = (0..64).rev().collect();
        let reordered = source.in_order(Some(&order));
        assert_eq!(one(&[reordered, reordered]).unwrap().order, Some(order.clone()));
        assert!(lay_alike(&[source, source]).unwrap().is_some() && lay_alike(&[reordered]).unwrap().is_none());
        let values = random.normals(16 * 64, 1.0);
        let dense: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()).collect();
        let dense = RowSource::new(GgmlType::BF16, 16, 64, &dense);
        assert!(lay(&[dense]).unwrap().is_none() && lay_alike(&[source, dense]).unwrap().is_none());
        let laid = lay(&[source, reordered, dense]).unwrap().unwrap();
        let formats: Vec<Format> = laid.iter().map(|laid| laid.layout.format).collect();
        assert_eq!(formats, [Format::Int4, Format::Int4, Format::Bf16]);
        assert!(laid[0].codes == laid[1].codes && laid[0].order.is_none() && laid[2].codes == dense.bytes);
        let odd = vec![0; 12 * FORMATS[0].row_bytes(64).unwrap()];
        assert!(lay(&[RowSource::new(FORMATS[0], 12, 64, &odd)]).unwrap().is_none());
    }

    /// Of zeros that no kernel decodes, in an order of its own, beside what is packed.
    #[test]
    fn what_is_widened_is_in_order() {
        let mut random = Random::new(94);
        let order: Vec<u32> = (0..96).map(|i| (i * 7 + 5) % 96).collect();
        let packed = rows(FORMATS[2], 8, 96, &mut random);
        let mut bytes = rows(FORMATS[1], 8, 96, &mut random);
        bytes[4..6].copy_from_slice(&129i16.to_le_bytes());
        let odd = RowSource::new(FORMATS[1], 8, 96, &bytes).in_order(Some(&order));
        let laid = lay(&[RowSource::new(FORMATS[2], 8, 96, &packed), odd]).unwrap().unwrap();
        let mut want = [0.0; 96];
        dequantize_row(FORMATS[1], &bytes[..bytes.len() / 8], &mut want).unwrap();
        RowSource::put_in_order(&order, &mut want);
        let want: Vec<u8> = want.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()).collect();
        assert!(laid[1].layout.format == Format::Bf16 && laid[1].order.is_none() && laid[1].codes[..192] == want);
    }

    /// Codes and words of GGML's blocks, put together as the kernels do: what the blocks stand for, to the bit.
    #[test]
    fn blocks_keep_their_meaning() {
        let mut random = Random::new(95);
        for ty in GgmlType::ALL.into_iter().filter(|ty| ty.block_len() != 1 && *ty != GgmlType::MXFP4) {
            let columns = if ty.block_len() == 32 { 96 } else { 512 };
            let mut row: Vec<u8> = (0..ty.row_bytes(columns).unwrap()).map(|_| random.bits() as u8).collect();
            // No half is infinite or NaN.
            row.iter_mut().for_each(|byte| *byte &= 0xbb);
            let mut want = vec![0.0; columns];
            dequantize_row(ty, &row, &mut want).unwrap();
            let layout = layout(ty.into(), 8, columns).unwrap();
            let (mut codes, mut words) = (Vec::new(), Vec::new());
            unpack(ty.into(), layout, &row, &mut codes, &mut words);
            assert_eq!((codes.len(), words.len()), (columns, layout.row_scales()), "{ty:?}");
            let got: Vec<u32> = (0..columns).map(|at| value(layout, &codes, &words, at).to_bits()).collect();
            assert_eq!(got, want.iter().map(|value| value.to_bits()).collect::<Vec<_>>(), "{ty:?}");
        }
    }

    fn value(layout: Layout, codes: &[u8], words: &[u32], at: usize) -> f32 {
        let code = f32::from(codes[at]);
        let half = |word: u32, index: usize| half::f16::from_bits((word >> (16 * index)) as u16).to_f32();
        let Format::Ggml(ggml) = layout.format else { panic!("{layout:?}") };
        let (of_chunks, of_blocks) = words.split_at(layout.columns.div_ceil(64));
        let (chunk, piece) = (at / 64, at / 32 % 2);
        let bytes = of_chunks[chunk].to_le_bytes();
        let small = bytes[at / 16 % 4];
        let zero = match ggml {
            Ggml::Q5_0 => 16.0,
            Ggml::Q6K => 32.0,
            Ggml::Q8_0 => 128.0,
            _ => 8.0,
        };
        match ggml.scaling() {
            Scaling::Halves => (code - zero) * half(of_chunks[chunk], piece),
            Scaling::HalvesAndMinima => code * half(of_chunks[chunk], piece) + half(of_blocks[chunk], piece),
            Scaling::Nested => (code - zero) * (half(of_blocks[chunk / 4], 0) * f32::from(small as i8)),
            Scaling::NestedAndMinima => {
                let block = of_blocks[chunk / 4];
                let (small, smallest) = match ggml.group() {
                    16 => (small & 15, small >> 4),
                    _ => (bytes[2 * piece], bytes[2 * piece + 1]),
                };
                code * (half(block, 0) * f32::from(small)) + half(block, 1) * f32::from(smallest)
            }
        }
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
        let laid = one(&[RowSource::new(GgmlType::MXFP4, 8, 32, &bytes)]).unwrap();
        let word = |at: usize| u32::from_le_bytes(laid.codes[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16)), (0x7531_6420, 0xfdb9_eca8));
        assert_eq!(laid.scales[0], 127);
    }
}
