//! Experts of which one tensor holds the gates and ups of all, `gate_up_proj`, and another their `down_proj`: either
//! `[experts, in_features, out_features]`, as gpt-oss and Llama 4 are saved; or MXFP4 as OpenAI publishes it, `_blocks`, U8
//! `[experts, out_features, in_features / 32, 16]` with neighbours in a byte, and `_scales`, U8
//! `[experts, out_features, in_features / 32]`. Biases are `_bias`, `[experts, out_features]`.

use plimsoll_ops::linear::Linear;
use plimsoll_ops::moe::Expert;
use plimsoll_ops::quant::GgmlType;

use super::super::Weights;
use super::super::loading::Form;
use super::super::packed::Matrix;
use super::super::source::Role;
use super::{ExpertsShape, load_expert, paired, part_of};
use crate::CheckpointError;
use crate::checkpoint::StoredTensor;

/// Elements of a block of MXFP4, and the bytes they are packed in.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;
/// The exponent that is not a number.
const NOT_A_NUMBER: u8 = 255;
/// Rows that are turned together: as many as a cache line has of their elements.
const STRIP: usize = 32;

/// One matrix of every expert.
pub(super) struct Fused {
    /// Output features.
    pub(super) rows: usize,
    /// Input features.
    pub(super) cols: usize,
    /// Even rows are the gate's, odd ones up's.
    alternating: bool,
}

/// The numbers of a matrix of every expert.
enum Numbers<'a> {
    /// Turned.
    Dense(StoredTensor<'a>),
    Mxfp4 {
        blocks: &'a [u8],
        scales: &'a [u8],
    },
}

impl Fused {
    /// `gate_up_proj` and `down_proj`.
    pub(super) fn both(shape: &ExpertsShape) -> (Self, Self) {
        let &ExpertsShape { hidden, intermediate, alternating, .. } = shape;
        let gate_up = Self { rows: 2 * intermediate, cols: hidden, alternating };
        (gate_up, Self { rows: hidden, cols: intermediate, alternating: false })
    }

    /// The row that stored row `row` is.
    fn row(&self, stored: usize) -> usize {
        match (self.alternating, stored % 2) {
            (false, _) => stored,
            (true, odd) => odd * (self.rows / 2) + stored / 2,
        }
    }

    /// Where an output row is stored.
    pub(super) fn stored_row(&self, row: usize) -> usize {
        match (self.alternating, self.rows / 2) {
            (false, _) => row,
            (true, half) if row < half => 2 * row,
            (true, half) => 2 * (row - half) + 1,
        }
    }
}

impl Weights<'_> {
    pub(super) fn fused(&self, shape: &ExpertsShape) -> Result<Vec<Expert>, CheckpointError> {
        let (gate_up, down) = Fused::both(shape);
        if self.is_survey() {
            for (name, matrix) in [("gate_up_proj", &gate_up), ("down_proj", &down)] {
                self.or_note(self.survey_fused(name, matrix, shape), || Ok(()))?;
            }
            return Ok(Vec::new());
        }
        Ok(paired(self.fused_matrix("gate_up_proj", &gate_up, shape)?, self.fused_matrix("down_proj", &down, shape)?))
    }

    /// One matrix, packed, of every expert.
    fn fused_matrix(&self, name: &str, matrix: &Fused, shape: &ExpertsShape) -> Result<Vec<Linear>, CheckpointError> {
        let full_name = format!("{}{name}", self.prefix);
        let &Fused { rows, cols, .. } = matrix;
        let biases = self.biases(&format!("{full_name}_bias"), rows, shape)?;
        let bias = |expert: usize| {
            let stored = &biases.as_ref()?[expert * rows..][..rows];
            Some((0..rows).map(|row| stored[matrix.stored_row(row)]).collect::<Vec<f32>>())
        };
        let format = self.wanted_format(&full_name, cols);
        let numbers = self.fused_numbers(&full_name, matrix, shape.experts)?;
        self.report(numbers.bytes());
        self.pack(shape.experts, |expert, placement| {
            let name = part_of(&full_name, expert);
            let stored = numbers.matrix(expert, shape.experts, matrix).brought_to(format, [rows, cols], &name)?;
            load_expert([(&name, stored.rows(rows, cols))], bias(expert), placement)
        })
    }

    /// As [`Weights::fused_matrix`], but that nothing is loaded.
    fn survey_fused(&self, name: &str, matrix: &Fused, shape: &ExpertsShape) -> Result<(), CheckpointError> {
        let full_name = format!("{}{name}", self.prefix);
        ["", "_blocks", "_scales"].iter().for_each(|ending| self.note_asked(&format!("{full_name}{ending}")));
        self.biases(&format!("{full_name}_bias"), matrix.rows, shape)?;
        let format = match self.fused_numbers(&full_name, matrix, shape.experts)? {
            Numbers::Dense(stored) => self.brought(&full_name, stored.ty.into(), matrix.cols),
            Numbers::Mxfp4 { .. } => GgmlType::MXFP4.into(),
        };
        self.count(&[(format, matrix.rows)], matrix.cols, shape.experts, Form::Alike);
        Ok(())
    }

    fn fused_numbers(
        &self,
        full_name: &str,
        &Fused { rows, cols, .. }: &Fused,
        experts: usize,
    ) -> Result<Numbers<'_>, CheckpointError> {
        let groups = cols / BLOCK;
        let blocks_name = format!("{full_name}_blocks");
        match self.loader.source.bytes(&blocks_name, &[experts, rows, groups, BLOCK_BYTES])? {
            Some(_) if cols % BLOCK != 0 => {
                let problem = format!("is of blocks of {BLOCK}, which do not divide {cols} input features");
                Err(CheckpointError::tensor(&blocks_name, problem))
            }
            Some(blocks) => {
                let scales = self.scales(&format!("{full_name}_scales"), &[experts, rows, groups])?;
                Ok(Numbers::Mxfp4 { blocks, scales })
            }
            None => {
                let stored = self.loader.source.tensor(full_name, &[experts, cols, rows], Role::Matrix)?;
                if stored.ty.block_len() != 1 {
                    return Err(CheckpointError::tensor(full_name, format!("{:?} cannot be turned", stored.ty)));
                }
                Ok(Numbers::Dense(stored))
            }
        }
    }

    fn scales(&self, name: &str, shape: &[usize]) -> Result<&[u8], CheckpointError> {
        let Some(scales) = self.loader.source.bytes(name, shape)? else {
            return Err(CheckpointError::MissingTensor { name: name.into() });
        };
        // This search is fast, the one for a place is not.
        if self.loader.source.has_headers_alone() || !scales.contains(&NOT_A_NUMBER) {
            return Ok(scales);
        }
        let at = scales.iter().position(|&exponent| exponent == NOT_A_NUMBER).unwrap_or_default();
        let (expert, row) = (at / (shape[1] * shape[2]), at / shape[2] % shape[1]);
        let problem = format!("has a scale for row {row} that is not a number: the file is corrupt");
        Err(CheckpointError::tensor(&part_of(name, expert), problem))
    }
}

impl Numbers<'_> {
    fn bytes(&self) -> u64 {
        match self {
            Numbers::Dense(stored) => stored.bytes.len() as u64,
            Numbers::Mxfp4 { blocks, scales } => (blocks.len() + scales.len()) as u64,
        }
    }

    /// The rows of one of so many experts, in the order in which they are computed.
    fn matrix(&self, expert: usize, experts: usize, matrix: &Fused) -> Matrix<'_> {
        let part = |bytes: &'_ [u8]| expert * (bytes.len() / experts)..(expert + 1) * (bytes.len() / experts);
        let (ty, bytes) = match self {
            Numbers::Dense(stored) => {
                let bytes = &stored.bytes[part(&stored.bytes)];
                (stored.ty, turned_rows(bytes, stored.ty.block_bytes(), matrix))
            }
            Numbers::Mxfp4 { blocks, scales } => {
                (GgmlType::MXFP4, mxfp4_rows(&blocks[part(blocks)], &scales[part(scales)], matrix))
            }
        };
        Matrix { format: ty.into(), bytes: bytes.into(), order: None, stored_bytes: 0 }
    }
}

/// The rows of a matrix as GGML has them: a block's scale, then its elements, the second half in the high nibbles.
fn mxfp4_rows(blocks: &[u8], scales: &[u8], matrix: &Fused) -> Vec<u8> {
    let groups = matrix.cols / BLOCK;
    let mut bytes = Vec::with_capacity(matrix.rows * groups * (1 + BLOCK_BYTES));
    for row in 0..matrix.rows {
        let first = matrix.stored_row(row) * groups;
        for at in first..first + groups {
            let block = &blocks[at * BLOCK_BYTES..][..BLOCK_BYTES];
            let element = |index: usize| block[index / 2] >> (4 * (index % 2)) & 15;
            bytes.push(scales[at]);
            bytes.extend((0..BLOCK_BYTES).map(|index| element(index) | element(index + BLOCK_BYTES) << 4));
        }
    }
    bytes
}

/// The rows of a matrix of elements of `size` bytes that is stored by columns.
fn turned_rows(stored: &[u8], size: usize, matrix: &Fused) -> Vec<u8> {
    let &Fused { rows, cols, .. } = matrix;
    let mut bytes = vec![0; stored.len()];
    for strip in (0..rows).step_by(STRIP) {
        for col in 0..cols {
            for row in strip..rows.min(strip + STRIP) {
                let element = &stored[(col * rows + row) * size..][..size];
                bytes[(matrix.row(row) * cols + col) * size..][..size].copy_from_slice(element);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use plimsoll_ops::quant::dequantize_row;

    use super::*;

    #[test]
    fn blocks_come_out_in_their_order_with_the_gate_first() {
        // Two stored rows (the gate's, up's) of two blocks; byte j of a block holds elements 2 j and 2 j + 1.
        let blocks: Vec<u8> = (0..64).map(|at: u8| at.wrapping_mul(37) ^ at >> 3).collect();
        let scales = [127, 128, 129, 126];
        let bytes = mxfp4_rows(&blocks, &scales, &Fused { rows: 4, cols: 32, alternating: true });
        const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (row, stored) in [0, 2, 1, 3].into_iter().enumerate() {
            let mut values = [0f32; 32];
            dequantize_row(GgmlType::MXFP4, &bytes[17 * row..][..17], &mut values).unwrap();
            for (index, value) in values.into_iter().enumerate() {
                let code = blocks[16 * stored + index / 2] >> (4 * (index % 2)) & 15;
                let sign = if code < 8 { 1.0 } else { -1.0 };
                let scale = [1.0, 2.0, 4.0, 0.5][stored];
                assert_eq!(value, sign * scale * VALUES[usize::from(code & 7)], "row {row}, element {index}");
            }
        }
    }

    #[test]
    fn dense_matrices_are_turned() {
        let row_of = |stored: usize, cols: usize, rows: usize| (0..cols).map(move |col| (col * rows + stored) as u8);
        for (rows, cols, alternating) in [(4, 3, true), (4, 3, false), (70, 3, true)] {
            let matrix: Vec<u8> = (0..rows * cols).flat_map(|at| [at as u8, !at as u8]).collect();
            let turned = turned_rows(&matrix, 2, &Fused { rows, cols, alternating });
            let half = rows / 2;
            let stored = |row: usize| match alternating {
                true if row < half => 2 * row,
                true => 2 * (row - half) + 1,
                false => row,
            };
            let want = (0..rows).flat_map(|row| row_of(stored(row), cols, rows)).flat_map(|at| [at, !at]);
            assert_eq!(turned, want.collect::<Vec<_>>(), "{rows} {cols} {alternating}");
        }
    }
}
