//! How packed weights lie in device memory: the other side of `include/packed/formats.cuh`.

use super::Format;

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Columns of a chunk.
pub(super) const CHUNK: usize = 64;
/// Columns of the half of one.
const PIECE: usize = 32;
/// Codes of a row that a lane holds of a piece.
const LANE_CODES: usize = 8;

/// A matrix `[rows, columns]` in one format. [`Format::Bf16`] lies row by row; the others tile by tile of 16 rows, so that
/// tiles can be made side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub format: Format,
    /// A multiple of 8.
    pub rows: usize,
    /// A multiple of 32; where [`Format::Ggml`]'s blocks have 256, of that.
    pub columns: usize,
    /// Columns that share a scale: 32 for [`Format::Mxfp4`], [`Ggml::group`] for [`Format::Ggml`], else a power of two from
    /// 32 on, or `columns`; of no meaning for [`Format::Bf16`].
    pub group: usize,
}

impl Layout {
    /// # Errors
    /// Sizes that the kernels were not made for.
    pub fn check(&self) -> Result<(), String> {
        let Self { format, rows, columns, group } = *self;
        if rows == 0 || !rows.is_multiple_of(8) || columns == 0 || !columns.is_multiple_of(PIECE) {
            return Err(format!("{rows} rows of {columns} columns: multiples of 8 and of {PIECE} are needed"));
        }
        match format {
            Format::Bf16 => Ok(()),
            Format::Mxfp4 if group == PIECE => Ok(()),
            Format::Mxfp4 => Err(format!("groups of {group} columns: MXFP4 has groups of {PIECE}")),
            Format::Ggml(ggml) if !columns.is_multiple_of(ggml.column_step()) => {
                Err(format!("{columns} columns: {ggml:?} has blocks of {}", ggml.column_step()))
            }
            Format::Ggml(ggml) if group == ggml.group() => Ok(()),
            Format::Ggml(ggml) => Err(format!("groups of {group} columns: {ggml:?} has groups of {}", ggml.group())),
            _ if group == columns || group >= PIECE && group.is_power_of_two() => Ok(()),
            _ => Err(format!("groups of {group} columns: a power of two from {PIECE} on is needed, or whole rows")),
        }
    }

    /// Tiles of the matrix.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    fn chunks(&self) -> usize {
        self.columns.div_ceil(CHUNK)
    }

    /// What the kernels take to read scales: what columns are shifted by to get their group, or what GGML's words hold.
    pub(super) fn scaling(&self) -> u32 {
        match self.format {
            Format::Ggml(ggml) => ggml.scaling() as u32,
            _ => self.group_shift(),
        }
    }

    fn group_shift(&self) -> u32 {
        if self.format == Format::Bf16 || self.group >= self.columns { 31 } else { self.group.trailing_zeros() }
    }

    /// Groups that scales are kept of; more than the matrix has where chunks reach beyond it.
    fn groups(&self) -> usize {
        ((self.chunks() * CHUNK - 1) >> self.group_shift()) + 1
    }

    /// Scales that [`Layout::lay_tile`] takes of a row: one a group, or GGML's words.
    pub fn row_scales(&self) -> usize {
        match self.format {
            Format::Bf16 => 0,
            Format::Ggml(ggml) => ggml.row_words(self.chunks()),
            _ => self.columns.div_ceil(self.group),
        }
    }

    /// Bytes of a tile's codes; not of [`Format::Bf16`], which has no tiles.
    pub fn tile_code_bytes(&self) -> usize {
        self.chunks() * TILE_ROWS * CHUNK * self.format.bits() / 8
    }

    /// Bytes of a tile's scales.
    pub fn tile_scale_bytes(&self) -> usize {
        match self.format {
            Format::Bf16 => 0,
            Format::Mxfp4 => self.chunks() * 2 * TILE_ROWS,
            Format::Ggml(ggml) => ggml.tile_bytes(self.chunks()),
            _ => self.groups() * TILE_ROWS * size_of::<u32>(),
        }
    }

    /// Where among the codes' bytes those of the tile begin that row `row` begins; not of [`Format::Bf16`].
    ///
    /// # Panics
    /// No tile begins there.
    pub fn tile_codes_at(&self, row: usize) -> usize {
        assert!(row.is_multiple_of(TILE_ROWS), "row {row} begins no tile");
        row / TILE_ROWS * self.tile_code_bytes()
    }

    /// Where among the scales' bytes the word of row `row` and group `group` is; of formats that have one a group.
    pub(crate) fn scale_word_at(&self, row: usize, group: usize) -> usize {
        row / TILE_ROWS * self.tile_scale_bytes() + word_in_tile(row % TILE_ROWS, group)
    }

    /// Bytes of all codes.
    pub fn code_bytes(&self) -> usize {
        match self.format {
            Format::Bf16 => 2 * self.rows * self.columns,
            _ => self.tiles() * self.tile_code_bytes(),
        }
    }

    /// Bytes of all scales.
    pub fn scale_bytes(&self) -> usize {
        self.tiles() * self.tile_scale_bytes()
    }

    /// Lays out a tile. `codes`: `[rows of the tile, columns]`, where the matrix ends before the tile does, fewer rows;
    /// `scales`: `[rows of the tile, row_scales]`, each an exponent (127: 1) of MXFP4, what [`scale_word`] gives, or for
    /// [`Format::Ggml`] the words of a row's chunks and then of its blocks, as [`Scaling`](super::Scaling) says. The outputs
    /// are [`Layout::tile_code_bytes`] and [`Layout::tile_scale_bytes`] zeros.
    ///
    /// # Panics
    /// The slices have other lengths, or the format is [`Format::Bf16`].
    pub fn lay_tile(&self, codes: &[u8], scales: &[u32], code_bytes: &mut [u8], scale_bytes: &mut [u8]) {
        self.lay_codes(codes, code_bytes);
        self.lay_scales(scales, scale_bytes);
        if let Format::Ggml(ggml) = self.format {
            let rows = codes.chunks_exact(self.columns).enumerate();
            rows.for_each(|(row, codes)| ggml.lay_tops(row, codes, scale_bytes));
        }
    }

    fn lay_codes(&self, codes: &[u8], out: &mut [u8]) {
        assert_ne!(self.format, Format::Bf16, "lies row by row");
        assert!(codes.len().is_multiple_of(self.columns) && codes.len() <= TILE_ROWS * self.columns, "codes of a tile");
        assert_eq!(out.len(), self.tile_code_bytes(), "room for a tile's codes");
        let word_bytes = LANE_CODES * self.format.bits() / 8;
        for (row, codes) in codes.chunks_exact(self.columns).enumerate() {
            for (index, eight) in codes.chunks_exact(LANE_CODES).enumerate() {
                let (chunk, piece, t) = (index / 8, index / 4 % 2, index % 4);
                let (lane, half) = (row % 8 * 4 + t, row / 8);
                // Bytes of the lane's in the chunk, spread over vectors of 16.
                let at = (2 * piece + half) * word_bytes;
                let vector = chunk * (self.format.bits() / 4) + at / 16;
                let to = vector * 512 + lane * 16 + at % 16;
                self.format.lay_eight(eight, &mut out[to..to + word_bytes]);
            }
        }
    }

    fn lay_scales(&self, scales: &[u32], out: &mut [u8]) {
        assert!(scales.len() <= TILE_ROWS * self.row_scales(), "scales of a tile");
        assert_eq!(out.len(), self.tile_scale_bytes(), "room for a tile's scales");
        for (row, scales) in scales.chunks_exact(self.row_scales()).enumerate() {
            if let Format::Ggml(ggml) = self.format {
                ggml.lay_words(row, scales, self.chunks(), out);
                continue;
            }
            for (group, scale) in scales.iter().enumerate() {
                if self.format == Format::Mxfp4 {
                    out[group / 2 * 32 + row % 8 * 4 + group % 2 * 2 + row / 8] = *scale as u8;
                } else {
                    let at = word_in_tile(row, group);
                    out[at..at + size_of::<u32>()].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
    }
}

/// Where among the bytes of a tile's scales the word of its row `row` and group `group` is.
fn word_in_tile(row: usize, group: usize) -> usize {
    (group * TILE_ROWS + 2 * (row % 8) + row / 8) * size_of::<u32>()
}

impl Format {
    /// Of a code, among codes: what GGML's have beyond that is among the scales.
    pub(super) fn bits(self) -> usize {
        match self {
            Format::Bf16 => 16,
            Format::Mxfp4 | Format::Int4 => 4,
            Format::Ggml(ggml) => ggml.bits(),
            Format::Int8 | Format::Fp8 => 8,
        }
    }

    /// Eight neighbours of a row, as a lane decodes them.
    fn lay_eight(self, codes: &[u8], out: &mut [u8]) {
        match self.bits() {
            8 => {
                const ORDER: [usize; LANE_CODES] = [0, 2, 1, 3, 4, 6, 5, 7];
                out.iter_mut().zip(ORDER).for_each(|(out, from)| *out = codes[from]);
            }
            _ => {
                let nibble = |i: usize| u32::from(codes[i] & 15);
                let word =
                    (0..4).fold(0, |word, i| word | nibble(2 * i) << (4 * i) | nibble(2 * i + 1) << (16 + 4 * i));
                out.copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// The word of a group: what codes, less the one that stands for zero, are multiplied by. The factor is rounded to 16
/// significant bits.
pub fn scale_word(factor: f32, zero: u8) -> u32 {
    let bits = factor.to_bits();
    // Not what is infinite or not a number, whose bits would say otherwise.
    let rounded = if factor.is_finite() { bits.saturating_add(0x80) } else { bits };
    rounded & !0xFF | u32::from(zero)
}

#[cfg(test)]
mod tests {
    use super::super::Ggml;
    use super::*;

    const LAYOUTS: [Layout; 9] = [
        Layout { format: Format::Mxfp4, rows: 24, columns: 96, group: 32 },
        Layout { format: Format::Int4, rows: 24, columns: 96, group: 32 },
        Layout { format: Format::Int8, rows: 24, columns: 96, group: 96 },
        Layout { format: Format::Fp8, rows: 24, columns: 96, group: 64 },
        Layout { format: Format::Ggml(Ggml::Q4_0), rows: 24, columns: 96, group: 32 },
        Layout { format: Format::Ggml(Ggml::Q5_1), rows: 24, columns: 96, group: 32 },
        Layout { format: Format::Ggml(Ggml::Q5K), rows: 24, columns: 512, group: 32 },
        Layout { format: Format::Ggml(Ggml::Q8_0), rows: 24, columns: 96, group: 32 },
        Layout { format: Format::Ggml(Ggml::Q6K), rows: 24, columns: 256, group: 16 },
    ];

    /// Both outputs, one after the other.
    fn laid(layout: Layout, codes: &[u8], scales: &[u32]) -> Vec<u8> {
        let (mut code_bytes, mut scale_bytes) = (vec![0; layout.tile_code_bytes()], vec![0; layout.tile_scale_bytes()]);
        layout.lay_tile(codes, scales, &mut code_bytes, &mut scale_bytes);
        [code_bytes, scale_bytes].concat()
    }

    /// Each code, and each scale, sets bits that nothing else does, and as many as it has.
    #[test]
    fn everything_has_a_place_of_its_own() {
        for layout in LAYOUTS {
            layout.check().unwrap();
            let bits = match layout.format {
                Format::Ggml(ggml) => ggml.bits() + ggml.tops(),
                format => format.bits(),
            };
            let scale = if layout.format == Format::Mxfp4 { 255 } else { u32::MAX };
            let (no_codes, no_scales) = (vec![0; 16 * layout.columns], vec![0; 16 * layout.row_scales()]);
            let mut taken = laid(layout, &no_codes, &no_scales);
            let mut take = |what: &str, out: Vec<u8>, bits: u32| {
                assert_eq!(out.iter().map(|byte| byte.count_ones()).sum::<u32>(), bits, "{layout:?}, {what}");
                for (taken, byte) in taken.iter_mut().zip(out) {
                    assert_eq!(*taken & byte, 0, "{layout:?}, {what}");
                    *taken |= byte;
                }
            };
            for at in 0..no_codes.len() {
                let mut codes = no_codes.clone();
                codes[at] = u8::MAX >> (8 - bits);
                take(&format!("code {at}"), laid(layout, &codes, &no_scales), bits as u32);
            }
            for at in 0..no_scales.len() {
                let mut scales = no_scales.clone();
                scales[at] = scale;
                take(&format!("scale {at}"), laid(layout, &no_codes, &scales), scale.count_ones());
            }
        }
    }

    #[test]
    fn scale_words_keep_sixteen_bits() {
        for factor in [1.0f32, -0.037, 3.3e-12, 448.0, 0.0] {
            let word = scale_word(factor, 200);
            assert_eq!(word & 0xFF, 200);
            let kept = f32::from_bits(word & !0xFF);
            assert!((kept - factor).abs() <= factor.abs() / 65536.0, "{factor}: {kept}");
        }
        assert!(f32::from_bits(scale_word(f32::INFINITY, 0)).is_infinite());
    }

    #[test]
    fn sizes_that_no_kernel_takes_are_refused() {
        let layout = |format, rows, columns, group| Layout { format, rows, columns, group }.check();
        assert!(layout(Format::Mxfp4, 16, 33, 32).unwrap_err().contains("33 columns"));
        assert!(layout(Format::Bf16, 12, 32, 0).unwrap_err().contains("12 rows"));
        assert!(layout(Format::Mxfp4, 16, 64, 64).unwrap_err().contains("groups of 64"));
        assert!(layout(Format::Int4, 16, 96, 48).unwrap_err().contains("groups of 48"));
        assert!(layout(Format::Ggml(Ggml::Q4K), 16, 128, 32).unwrap_err().contains("blocks of 256"));
        assert!(layout(Format::Ggml(Ggml::Q6K), 16, 256, 32).unwrap_err().contains("groups of 16"));
        assert!(layout(Format::Int8, 16, 96, 96).is_ok() && layout(Format::Fp8, 16, 512, 128).is_ok());
    }
}
