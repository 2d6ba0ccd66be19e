//! The scales of a matrix, in whichever shape they are stored.

use half::{bf16, f16};
use plimsoll_ops::quant::LARGEST_SCALE;
use safetensors::Dtype;

use super::Module;
use crate::CheckpointError;
use crate::checkpoint::RawTensor;

/// One scale for each block of a matrix: of so many rows, and of so many columns.
pub(super) struct Scales {
    values: Vec<f32>,
    block_rows: usize,
    /// Columns that share a scale.
    pub(super) group: usize,
    /// Between the values of neighbouring blocks, down and across.
    strides: (usize, usize),
}

impl Scales {
    pub(super) fn at(&self, row: usize, group: usize) -> f32 {
        self.values[row / self.block_rows * self.strides.0 + group * self.strides.1]
    }

    /// Stored by rows: one for all, one a row, one a row and group of columns, or (if `block` says so) one for a block.
    pub(super) fn by_rows(
        module: &Module<'_, '_>,
        tensor: &str,
        block: Option<[usize; 2]>,
    ) -> Result<Self, CheckpointError> {
        let stored = module.get(tensor)?;
        let &Module { rows, cols, .. } = module;
        let (block_rows, group) = match *stored.shape {
            [] | [1] | [1, 1] => (rows, cols),
            [n] | [n, 1] if n == rows => (1, cols),
            [down, across] => match block {
                Some([r, c]) if [down, across] == [rows.div_ceil(r), cols.div_ceil(c)] => (r, c),
                None if down == rows && across > 0 && cols.is_multiple_of(across) => (1, cols / across),
                Some([r, c]) => return Err(misshapen(module, tensor, &stored, &[rows.div_ceil(r), cols.div_ceil(c)])),
                None => return Err(misshapen(module, tensor, &stored, &[rows, 1])),
            },
            _ => return Err(misshapen(module, tensor, &stored, &[rows, 1])),
        };
        let strides = (cols.div_ceil(group), 1);
        let values = numbers(module, tensor, &stored, |index| index / strides.0 * block_rows)?;
        Ok(Self { values, block_rows, group, strides })
    }

    /// Stored `[groups, rows]`.
    pub(super) fn by_columns(module: &Module<'_, '_>, tensor: &str) -> Result<Self, CheckpointError> {
        let stored = module.get(tensor)?;
        let &Module { rows, cols, .. } = module;
        match *stored.shape {
            [groups, n] if n == rows && groups > 0 && cols.is_multiple_of(groups) => {
                let values = numbers(module, tensor, &stored, |index| index % rows)?;
                Ok(Self { values, block_rows: 1, group: cols / groups, strides: (1, rows) })
            }
            _ => Err(misshapen(module, tensor, &stored, &[1, rows])),
        }
    }

    /// Scales in a row.
    pub(super) fn groups(&self, cols: usize) -> usize {
        cols.div_ceil(self.group)
    }
}

fn misshapen(module: &Module<'_, '_>, tensor: &str, found: &RawTensor<'_>, expected: &[usize]) -> CheckpointError {
    let (expected, found) = (expected.to_vec(), found.shape.to_vec());
    CheckpointError::Shape { name: module.full_name(tensor), expected, found }
}

/// A tensor's numbers, all of which must be scales; `row` is the first of the matrix that one is for. None, where numbers
/// are not to be looked at.
fn numbers(
    module: &Module<'_, '_>,
    tensor: &str,
    stored: &RawTensor<'_>,
    row: impl Fn(usize) -> usize,
) -> Result<Vec<f32>, CheckpointError> {
    if module.headers_alone {
        return Ok(Vec::new());
    }
    let numbers = floats(stored).ok_or_else(|| {
        module.error(tensor, format!("has dtype {:?}; F32, F16, BF16 and F8_E8M0 are implemented", stored.dtype))
    })?;
    let is_scale = |number: &f32| number.abs() <= LARGEST_SCALE;
    let Some(at) = numbers.iter().position(|number| !is_scale(number)) else { return Ok(numbers) };
    let problem = if numbers[at].is_finite() { "too large" } else { "not a number: the file is corrupt" };
    Err(module.error(tensor, format!("has a scale of {} for row {}, which is {problem}", numbers[at], row(at))))
}

/// The elements of a tensor of floats; `None` if it is of something else.
pub(super) fn floats(stored: &RawTensor<'_>) -> Option<Vec<f32>> {
    let (pairs, _) = stored.bytes.as_chunks::<2>();
    let (fours, _) = stored.bytes.as_chunks::<4>();
    Some(match stored.dtype {
        Dtype::F32 => fours.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        Dtype::F16 => pairs.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::BF16 => pairs.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
        Dtype::F8_E8M0 => stored.bytes.iter().map(|&exponent| power_of_two(exponent)).collect(),
        _ => return None,
    })
}

/// `2^(exponent - 127)`; 255 is not a number.
fn power_of_two(exponent: u8) -> f32 {
    if exponent == 255 { f32::NAN } else { 2f32.powi(i32::from(exponent) - 127) }
}
