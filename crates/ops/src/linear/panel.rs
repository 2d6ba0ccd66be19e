//! How weights lie in memory: panels of 32 rows, read front to back.
//!
//! A dense panel is `[cols][32]` elements. A quantized panel is its blocks of 32 columns in order, each
//!
//! - the scales of the 32 rows, as f16 (of MXFP4, as bf16), then, where the format has them, the minimums (Q4_0 to Q8_0); or, for formats
//!   with nested scales, an i8 scale a row for each group of the block, then the i8 minimums, with the f16 factors of
//!   both in front of every eighth block;
//! - the codes, in stripes of 128 bytes: bytes `4 r .. 4 r + 4` are four consecutive columns of row `r`. Codes of 8 bits
//!   take 8 stripes; of 4 bits 4 stripes, with columns 0 to 15 in the low and columns 16 to 31 in the high nibbles.
//!
//! A panel of integers under scales of groups (see [`Grouped`]) has blocks of codes alone, and in front of each group's
//! blocks the 32 rows' scales as f32 and their zeros as i16. A panel of E4M3 is its groups, each 32 scales, as f32 and 256
//! times themselves, and then `[columns][32]` codes: it is read as the dense ones are.
//!
//! So nothing is lost or rounded: [`Section::read_row`] gives back what `dequantize_row` gave.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, bail};
use half::{bf16, f16};

use super::RowSource;
use super::packing::Packing;
use crate::par::parallel_for;
use crate::quant::{
    Block, BlockFormat, Codes, E4M3_UNIT, GgmlType, Grouped, RowFormat, check_row, e4m3_as_half, weight,
};

/// Rows of a panel: the f32 lanes of two 512-bit vectors, so that every activation that is loaded is used twice.
pub(super) const PANEL: usize = 32;
/// Bytes of codes for four columns of 8 bits, or twice four columns of 4 bits.
pub(super) const STRIPE: usize = 4 * PANEL;
/// Columns of a block.
pub(super) const BLOCK: usize = 32;
/// Blocks under one pair of factors, where scales are nested.
pub(super) const SUPER: usize = 8;
/// Bytes of the f32 scales and the i16 zeros of a group of a panel's rows.
const GROUP_HEADER: usize = (4 + 2) * PANEL;
/// Bytes of the scales of a group of E4M3.
const FLOAT_HEADER: usize = 4 * PANEL;

/// Where things lie in a quantized panel; all sizes in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct PanelLayout {
    pub(super) format: BlockFormat,
    /// What is in front of every so many blocks: factors, or the scales and zeros of a group.
    pub(super) header: usize,
    /// How many blocks: [`SUPER`], or those of a group, which this constant does not know.
    pub(super) every: usize,
    /// The scales of a block; the minimums, if any, are as many.
    pub(super) scales: usize,
    pub(super) codes: usize,
}

impl PanelLayout {
    /// # Panics
    /// If the packing is not one of blocks; at compile time where it is used in a constant.
    pub(super) const fn of(packing: Packing) -> PanelLayout {
        let Some(format) = packing.block_format() else { panic!("a packing of blocks") };
        let parts = if format.has_min { 2 } else { 1 };
        let (header, scales) = match (format.nested, format.grouped) {
            (false, false) => (0, 2 * PANEL),
            (true, _) => (parts * 2 * PANEL, BLOCK / format.group * PANEL),
            (_, true) => (GROUP_HEADER, 0),
        };
        PanelLayout { format, header, every: SUPER, scales, codes: BLOCK * PANEL * format.bits / 8 }
    }

    /// With so many blocks under a header, if they are a group.
    pub(super) const fn with_groups(self, every: usize) -> PanelLayout {
        if self.format.grouped { PanelLayout { every, ..self } } else { self }
    }

    pub(super) const fn block_bytes(&self) -> usize {
        (if self.format.has_min { 2 } else { 1 }) * self.scales + self.codes
    }

    pub(super) const fn panel_bytes(&self, blocks: usize) -> usize {
        blocks * self.block_bytes() + blocks.div_ceil(self.every) * self.header
    }

    /// Block `index` of a panel.
    pub(super) fn block<'a>(&'a self, panel: &'a [u8], index: usize) -> BlockView<'a> {
        let group = index / self.every;
        let at = index * self.block_bytes() + (group + 1) * self.header;
        let header = self.every * group * self.block_bytes() + group * self.header;
        BlockView { layout: self, header: &panel[header..][..self.header], body: &panel[at..][..self.block_bytes()] }
    }

    /// Byte and shift of a code within the codes of a block.
    fn code_at(&self, row: usize, col: usize) -> (usize, usize) {
        match self.format.bits {
            4 => (STRIPE * (col % 16 / 4) + 4 * row + col % 4, col / 16 * 4),
            _ => (STRIPE * (col / 4) + 4 * row + col % 4, 0),
        }
    }
}

/// A panel's rows of one block.
pub(super) struct BlockView<'a> {
    layout: &'a PanelLayout,
    header: &'a [u8],
    body: &'a [u8],
}

impl BlockView<'_> {
    /// The scale and the minimum (or 0) of a row in group `group` of the block.
    pub(super) fn scale(&self, group: usize, row: usize) -> (f32, f32) {
        let PanelLayout { format, scales, .. } = self.layout;
        let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32();
        if format.grouped {
            return (float_at(self.header, row), 0.0);
        }
        if !format.nested {
            let scale = format.factor([self.body[2 * row], self.body[2 * row + 1]]);
            return (scale, if format.has_min { half(self.body, PANEL + row) } else { 0.0 });
        }
        let small = |at: usize| f32::from(self.body[at + group * PANEL + row] as i8);
        let min = if format.has_min { half(self.header, PANEL + row) * small(*scales) } else { 0.0 };
        (half(self.header, row) * small(0), min)
    }

    /// What a row's codes are less.
    pub(super) fn offset(&self, row: usize) -> i32 {
        if !self.layout.format.grouped {
            return self.layout.format.offset;
        }
        let at = 4 * PANEL + 2 * row;
        i32::from(i16::from_le_bytes([self.header[at], self.header[at + 1]]))
    }

    /// All codes as they are stored, by column and row.
    pub(super) fn codes(&self) -> [[u8; PANEL]; BLOCK] {
        let mut codes = [[0; PANEL]; BLOCK];
        let bytes = &self.body[self.body.len() - self.layout.codes..];
        let wide = self.layout.format.bits == 8;
        for (stripe, bytes) in bytes.chunks_exact(STRIPE).enumerate() {
            for (row, four) in bytes.as_chunks::<4>().0.iter().enumerate() {
                for (at, byte) in four.iter().enumerate() {
                    codes[4 * stripe + at][row] = if wide { *byte } else { byte & 15 };
                    if !wide {
                        codes[16 + 4 * stripe + at][row] = byte >> 4;
                    }
                }
            }
        }
        codes
    }

    fn code(&self, row: usize, col: usize) -> u8 {
        let (at, shift) = self.layout.code_at(row, col);
        let byte = self.body[self.body.len() - self.layout.codes + at] >> shift;
        if self.layout.format.bits == 4 { byte & 15 } else { byte }
    }

    /// All weights, by column and row.
    pub(super) fn weights(&self) -> [[f32; PANEL]; BLOCK] {
        let format = &self.layout.format;
        let codes = self.codes();
        let mut weights = [[0f32; PANEL]; BLOCK];
        let offsets: [i32; PANEL] = std::array::from_fn(|row| self.offset(row));
        let groups = weights.chunks_exact_mut(format.group).zip(codes.chunks_exact(format.group));
        for (group, (weights, codes)) in groups.enumerate() {
            let scales: [(f32, f32); PANEL] = std::array::from_fn(|row| self.scale(group, row));
            for (out, codes) in weights.iter_mut().zip(codes) {
                for (((out, &code), (scale, min)), offset) in out.iter_mut().zip(codes).zip(scales).zip(offsets) {
                    *out = weight(format, code, offset, scale, min);
                }
            }
        }
        weights
    }

    /// One row's weights.
    fn read_row(&self, row: usize, out: &mut [f32]) {
        let format = &self.layout.format;
        for (group, out) in out.chunks_exact_mut(format.group).enumerate() {
            let (scale, min) = self.scale(group, row);
            for (at, out) in out.iter_mut().enumerate() {
                *out = weight(format, self.code(row, group * format.group + at), self.offset(row), scale, min);
            }
        }
    }
}

/// 64 bytes that start a cache line, so that no vector of codes straddles two.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Consecutive output rows of one format, packed.
pub(super) struct Section {
    packing: Packing,
    rows: usize,
    cols: usize,
    /// Columns that share a scale, where the format leaves that open; else all.
    group: usize,
    /// See [`Section::input`].
    input: usize,
    panel_bytes: usize,
    lines: Vec<Line>,
}

impl std::fmt::Debug for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Section({:?} [{}, {}])", self.packing, self.rows, self.cols)
    }
}

/// Columns that share a scale, where the format leaves that open; else all.
fn group_of(format: RowFormat, cols: usize) -> usize {
    match format {
        RowFormat::Ggml(_) => cols,
        RowFormat::Grouped(Grouped { group, .. }) => group.min(cols),
    }
}

fn panel_bytes(packing: Packing, cols: usize, group: usize) -> usize {
    match packing.block_format() {
        Some(_) => PanelLayout::of(packing).with_groups(group / BLOCK).panel_bytes(cols / BLOCK),
        None if packing == Packing::E4M3 => cols.div_ceil(group) * FLOAT_HEADER + PANEL * cols,
        None => PANEL * cols * packing.element_bytes(),
    }
}

/// Bytes of a section of so many rows, which are rows that the format has.
pub(super) fn packed_bytes(format: RowFormat, rows: usize, cols: usize) -> usize {
    let panel_bytes = panel_bytes(Packing::of(format), cols, group_of(format, cols));
    (rows.div_ceil(PANEL) * panel_bytes).next_multiple_of(size_of::<Line>())
}

impl Section {
    /// `source.bytes` must have been checked to be `rows` whole rows; `input` is what [`Section::input`] gives.
    ///
    /// # Errors
    /// A row holds what is not a number: looked for where the row is read anyway.
    pub(super) fn pack(source: &RowSource<'_>, input: usize) -> Result<Section> {
        let RowSource { format, rows, cols, bytes, .. } = *source;
        let packing = Packing::of(format);
        let group = group_of(format, cols);
        let panel_bytes = panel_bytes(packing, cols, group);
        let lines = vec![Line([0; 64]); (rows.div_ceil(PANEL) * panel_bytes).div_ceil(64)];
        let mut section = Section { packing, rows, cols, group, input, panel_bytes, lines };
        let panel_bytes = section.panel_bytes;
        let row_bytes = bytes.len() / rows.max(1);
        let fault = Mutex::new(None);
        let panels: Vec<Mutex<&mut [u8]>> = section.bytes_mut().chunks_exact_mut(panel_bytes).map(Mutex::new).collect();
        parallel_for(rows.div_ceil(PANEL), |index| {
            let mut panel = panels[index].lock().unwrap_or_else(PoisonError::into_inner);
            let rows = index * PANEL..rows.min((index + 1) * PANEL);
            let rows = bytes[rows.start * row_bytes..rows.end * row_bytes].chunks_exact(row_bytes);
            match rows.clone().try_for_each(|row| check_row(format, row)) {
                Ok(()) => pack_rows(format, rows, &mut panel),
                Err(problem) => *fault.lock().unwrap_or_else(PoisonError::into_inner) = Some(problem),
            }
        });
        drop(panels);
        match fault.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(problem) => bail!("a row {problem}"),
            None => Ok(section),
        }
    }

    pub(super) fn packing(&self) -> Packing {
        self.packing
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Where the columns end that follow `start` and share their scales, of a packing of floats; all do that have none.
    pub(super) fn float_run_end(&self, start: usize) -> usize {
        if self.packing == Packing::E4M3 { self.cols.min((start / self.group + 1) * self.group) } else { self.cols }
    }

    /// Which of the activations' orders of columns the rows are to be multiplied with: 0 is as they come, `n` the `n`th
    /// of those that the whole matrix knows.
    pub(super) fn input(&self) -> usize {
        self.input
    }

    /// Blocks under a header, where a group has one.
    pub(super) fn blocks_per_group(&self) -> usize {
        self.group / BLOCK
    }

    /// Of a packing of blocks.
    pub(super) fn layout(&self) -> PanelLayout {
        PanelLayout::of(self.packing).with_groups(self.blocks_per_group())
    }

    /// The last may be padded with rows of zeros.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(super) fn panel(&self, index: usize) -> &[u8] {
        &self.bytes()[index * self.panel_bytes..][..self.panel_bytes]
    }

    /// Some columns, of one group, of a panel that is not one of blocks; and what their elements are multiplied with.
    pub(super) fn float_columns<'a>(&self, panel: &'a [u8], cols: Range<usize>) -> (&'a [u8], [f32; PANEL]) {
        let size = PANEL * self.packing.element_bytes();
        if self.packing != Packing::E4M3 {
            return (&panel[cols.start * size..][..cols.len() * size], [1.0; PANEL]);
        }
        let index = cols.start / self.group;
        let header = &panel[index * (FLOAT_HEADER + self.group * size)..];
        let columns = &header[FLOAT_HEADER + (cols.start - index * self.group) * size..][..cols.len() * size];
        (columns, std::array::from_fn(|row| float_at(header, row)))
    }

    pub(super) fn packed_bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// One row, exactly as `dequantize_row` reads it from the source.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let panel = self.panel(row / PANEL);
        let row = row % PANEL;
        if self.packing.block_format().is_some() {
            let layout = self.layout();
            for (index, out) in out.chunks_exact_mut(BLOCK).enumerate() {
                layout.block(panel, index).read_row(row, out);
            }
            return;
        }
        let size = self.packing.element_bytes();
        let mut start = 0;
        while start < self.cols {
            let end = self.float_run_end(start);
            let (elements, scales) = self.float_columns(panel, start..end);
            for (col, value) in out[start..end].iter_mut().enumerate() {
                *value = float_element(self.packing, &elements[(col * PANEL + row) * size..], scales[row]);
            }
            start = end;
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: a `Line` is 64 initialized bytes without padding, and `u8` needs no alignment.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.packed_bytes()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let length = self.packed_bytes();
        // SAFETY: as in `bytes`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), length) }
    }
}

/// The first element of `bytes`, of a packing that is not one of blocks, times `scale` if it has scales.
pub(super) fn float_element(packing: Packing, bytes: &[u8], scale: f32) -> f32 {
    match packing {
        Packing::Ggml(GgmlType::F16) => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Packing::Ggml(GgmlType::BF16) => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        Packing::E4M3 => e4m3_as_half(bytes[0]).to_f32() * scale,
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

fn float_at(bytes: &[u8], index: usize) -> f32 {
    let (floats, _) = bytes.as_chunks::<4>();
    f32::from_le_bytes(floats[index])
}

/// Packs a panel's rows.
fn pack_rows<'a>(format: RowFormat, rows: impl Iterator<Item = &'a [u8]> + Clone, panel: &mut [u8]) {
    match format {
        RowFormat::Ggml(ty) if ty.block_format().is_none() => match ty.block_bytes() {
            2 => pack_dense_rows::<2>(rows, panel),
            _ => pack_dense_rows::<4>(rows, panel),
        },
        _ => rows.enumerate().for_each(|(row, bytes)| pack_row(format, bytes, row, panel)),
    }
}

/// Of elements of `N` bytes: some columns of all rows at a time, so that what is written to stays in the nearest cache.
fn pack_dense_rows<'a, const N: usize>(rows: impl Iterator<Item = &'a [u8]> + Clone, panel: &mut [u8]) {
    const COLUMNS: usize = 32;
    for (index, columns) in panel.chunks_mut(COLUMNS * PANEL * N).enumerate() {
        for (row, bytes) in rows.clone().enumerate() {
            pack_dense_row::<N>(&bytes[index * COLUMNS * N..], row, columns);
        }
    }
}

/// As many of the elements as there are columns.
fn pack_dense_row<const N: usize>(bytes: &[u8], row: usize, columns: &mut [u8]) {
    for (element, column) in bytes.as_chunks::<N>().0.iter().zip(columns.chunks_exact_mut(PANEL * N)) {
        column[row * N..][..N].copy_from_slice(element);
    }
}

/// A row that is not of plain numbers.
fn pack_row(format: RowFormat, bytes: &[u8], row: usize, panel: &mut [u8]) {
    match format {
        RowFormat::Ggml(ty) => pack_quantized_row(ty, bytes, row, panel),
        RowFormat::Grouped(format) if format.codes == Codes::E4M3 => pack_e4m3_row(format, bytes, row, panel),
        RowFormat::Grouped(format) => pack_integer_row(format, bytes, row, panel),
    }
}

fn pack_quantized_row(ty: GgmlType, bytes: &[u8], row: usize, panel: &mut [u8]) {
    let layout = PanelLayout::of(Packing::Ggml(ty));
    let PanelLayout { format, header, scales, codes, .. } = layout;
    let mut block = Block::new();
    let mut rest = panel;
    for bytes in bytes.chunks_exact(ty.block_bytes()) {
        block.read(ty, bytes);
        let factors;
        (factors, rest) = rest.split_at_mut(header);
        if format.nested {
            put_factors(&block, format.has_min, row, factors);
        }
        for index in 0..format.block_len / BLOCK {
            let body;
            (body, rest) = rest.split_at_mut(layout.block_bytes());
            if format.nested {
                for group in 0..BLOCK / format.group {
                    let from = index * (BLOCK / format.group) + group;
                    body[group * PANEL + row] = block.scales[from] as u8;
                    if format.has_min {
                        body[scales + group * PANEL + row] = block.mins[from] as u8;
                    }
                }
            } else {
                put_factors(&block, format.has_min, row, body);
            }
            let target = body.len() - codes;
            put_codes(format.bits, &block.codes[index * BLOCK..][..BLOCK], row, &mut body[target..]);
        }
    }
}

/// Puts a row's codes of one block into its stripes, where [`PanelLayout::code_at`] finds them: four columns at a time.
fn put_codes(bits: usize, codes: &[u8], row: usize, stripes: &mut [u8]) {
    let (fours, _) = codes.as_chunks::<4>();
    for (index, stripe) in stripes.chunks_exact_mut(STRIPE).enumerate() {
        let mut four = u32::from_le_bytes(fours[index]);
        if bits == 4 {
            four |= u32::from_le_bytes(fours[index + 4]) << 4;
        }
        stripe[4 * row..][..4].copy_from_slice(&four.to_le_bytes());
    }
}

fn put_factors(block: &Block, has_min: bool, row: usize, out: &mut [u8]) {
    out[2 * row..][..2].copy_from_slice(&block.d);
    if has_min {
        out[2 * (PANEL + row)..][..2].copy_from_slice(&block.m.to_le_bytes());
    }
}

fn pack_e4m3_row(format: Grouped, bytes: &[u8], row: usize, panel: &mut [u8]) {
    let mut rest = panel;
    for group in format.groups(bytes) {
        let (header, codes);
        (header, rest) = rest.split_at_mut(FLOAT_HEADER);
        (codes, rest) = rest.split_at_mut(group.codes.len() * PANEL);
        header[4 * row..][..4].copy_from_slice(&(group.scale * E4M3_UNIT).to_le_bytes());
        pack_dense_row::<1>(group.codes, row, codes);
    }
}

fn pack_integer_row(format: Grouped, bytes: &[u8], row: usize, panel: &mut [u8]) {
    let layout = PanelLayout::of(Packing::of(format.into()));
    let stored = BLOCK * layout.format.bits / 8;
    let mut rest = panel;
    for group in format.groups(bytes) {
        let header;
        (header, rest) = rest.split_at_mut(layout.header);
        header[4 * row..][..4].copy_from_slice(&group.scale.to_le_bytes());
        header[4 * PANEL + 2 * row..][..2].copy_from_slice(&group.zero.to_le_bytes());
        for codes in group.codes.chunks_exact(stored) {
            let body;
            (body, rest) = rest.split_at_mut(layout.codes);
            let codes: [u8; BLOCK] = match layout.format.bits {
                4 => std::array::from_fn(|col| codes[col / 2] >> (4 * (col % 2)) & 15),
                _ => std::array::from_fn(|col| codes[col]),
            };
            put_codes(layout.format.bits, &codes, row, body);
        }
    }
}
