//! Codes in their rows: FP8 (under a scale for the matrix, for each row or for each block) and INT8, a byte each; and
//! integers that compressed-tensors packs into words along the row.

use std::borrow::Cow;

use plimsoll_ops::quant::Codes;
use safetensors::Dtype;

use super::rows::{format_of, integers, make_rows, order};
use super::scales::Scales;
use super::{Found, Module, Words};
use crate::CheckpointError;
use crate::checkpoint::RawTensor;

/// The module's matrix; `None` if it is stored as it was.
pub(super) fn find<'a>(
    module: &Module<'_, 'a>,
    block: Option<[usize; 2]>,
) -> Result<Option<Found<'a>>, CheckpointError> {
    if let Some(packed) = module.find("weight_packed")? {
        return words(module, &packed).map(Some);
    }
    match module.look("weight")?.map(|weight| weight.dtype) {
        Some(Dtype::F8_E4M3) => floats(module, block).map(Some),
        Some(Dtype::I8) => bytes(module).map(Some),
        _ => Ok(None),
    }
}

/// `weight`, F8_E4M3 `[rows, cols]`, and `weight_scale` or `weight_scale_inv` (which is to be multiplied with too).
fn floats<'a>(module: &Module<'_, 'a>, block: Option<[usize; 2]>) -> Result<Found<'a>, CheckpointError> {
    let codes = module.exactly("weight", Dtype::F8_E4M3, &[module.rows, module.cols])?;
    let name = if module.look("weight_scale_inv")?.is_some() { "weight_scale_inv" } else { "weight_scale" };
    let scales = Scales::by_rows(module, name, block)?;
    let (format, row_bytes) = format_of(module, "weight", Codes::E4M3, &scales)?;
    let (name, rows, cols) = (module.full_name("weight"), module.rows, module.cols);
    let read = move || {
        let made = make_rows(rows, row_bytes, |row, out| {
            let codes = &codes[row * cols..][..cols];
            for (group, codes) in codes.chunks(format.group).enumerate() {
                format.push_group(out, scales.at(row, group), 0, codes.iter().copied());
            }
            Ok(())
        });
        made.map(Cow::from).map_err(|e| CheckpointError::tensor(&name, e))
    };
    Ok(Found { format: format.into(), order: None, stored_bytes: 0, read: Box::new(read) })
}

/// `weight`, I8 `[rows, cols]`, `weight_scale` and perhaps `weight_zero_point`, I8 of the scales' shape.
fn bytes<'a>(module: &Module<'_, 'a>) -> Result<Found<'a>, CheckpointError> {
    let &Module { rows, cols, .. } = module;
    let stored = module.exactly("weight", Dtype::I8, &[rows, cols])?;
    let scales = Scales::by_rows(module, "weight_scale", None)?;
    let shape = module.get("weight_scale")?.shape;
    let zeros = match module.look("weight_zero_point")? {
        None => None,
        Some(_) => Some(module.exactly("weight_zero_point", Dtype::I8, shape)?),
    };
    let groups = scales.groups(cols);
    let zero = move |row: usize, group: usize| {
        let at = |zeros: &[u8]| zeros[if zeros.len() == 1 { 0 } else { row * groups + group }];
        128 + zeros.map_or(0, |zeros| i16::from(at(zeros) as i8))
    };
    let codes = move |row: usize, out: &mut [u8]| {
        out.iter_mut().zip(&stored[row * cols..]).for_each(|(out, byte)| *out = byte ^ 0x80);
    };
    integers(module, ("weight", 8), scales, None, zero, codes)
}

/// `weight_packed`, I32 `[rows, cols bits / 32]`, with neighbours in a word from its low end; `weight_scale`;
/// `weight_shape`; perhaps `weight_zero_point` and `weight_g_idx`.
fn words<'a>(module: &Module<'_, 'a>, packed: &RawTensor<'a>) -> Result<Found<'a>, CheckpointError> {
    let name = "weight_packed";
    let &Module { rows, cols, .. } = module;
    let bits = match *packed.shape {
        [_, words] if words * 8 == cols => 4,
        [_, words] if words * 4 == cols => 8,
        _ => 0,
    };
    if bits == 0 {
        let problem = format!("of shape {:?} is not {cols} columns of 4 or 8 bits", packed.shape);
        return Err(module.error(name, problem));
    }
    if packed.dtype != Dtype::I32 {
        return Err(module.error(name, format!("has dtype {:?}; it must be I32", packed.dtype)));
    }
    module.check_shape(name, packed.shape, &[rows, cols * bits / 32])?;
    check_stated_shape(module)?;
    let scales = Scales::by_rows(module, "weight_scale", None)?;
    let order = order(module, "weight_g_idx", scales.group)?;
    let zeros = Zeros::read(module, bits, scales.groups(cols))?;
    let packed = packed.bytes;
    let codes = move |row: usize, out: &mut [u8]| {
        let bytes = &packed[row * cols * bits / 8..][..cols * bits / 8];
        match bits {
            4 => out.as_chunks_mut::<2>().0.iter_mut().zip(bytes).for_each(|(out, byte)| *out = [byte & 15, byte >> 4]),
            _ => out.copy_from_slice(bytes),
        }
    };
    integers(module, (name, bits), scales, order, move |row, group| zeros.at(row, group), codes)
}

/// `weight_shape` must say what the config does.
fn check_stated_shape(module: &Module<'_, '_>) -> Result<(), CheckpointError> {
    let name = "weight_shape";
    let Some(stated) = module.find(name)? else { return Ok(()) };
    let sizes: Vec<i64> = match stated.dtype {
        Dtype::I64 => stated.bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::I32 => stated.bytes.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        other => return Err(module.error(name, format!("has dtype {other:?}; it must be I64"))),
    };
    match sizes == [module.rows as i64, module.cols as i64] {
        true => Ok(()),
        false => Err(module.error(name, format!("says {sizes:?}, the config [{}, {}]", module.rows, module.cols))),
    }
}

/// What stands for 0 in packed integers.
enum Zeros<'a> {
    /// The middle of the range, everywhere.
    Middle(i16),
    /// I32 `[rows bits / 32, groups]`: packed down the rows.
    Packed { words: Words<'a>, bits: usize, groups: usize },
    /// I8 `[rows, groups]`, less the middle.
    Bytes { bytes: &'a [u8], middle: i16, groups: usize },
}

impl<'a> Zeros<'a> {
    fn read(module: &Module<'_, 'a>, bits: usize, groups: usize) -> Result<Self, CheckpointError> {
        let (name, middle) = ("weight_zero_point", 1 << (bits - 1));
        match module.look(name)?.map(|zeros| zeros.dtype) {
            None => Ok(Self::Middle(middle)),
            Some(Dtype::I8) => {
                let bytes = module.exactly(name, Dtype::I8, &[module.rows, groups])?;
                Ok(Self::Bytes { bytes, middle, groups })
            }
            Some(_) => {
                let words = module.words(name, &[(module.rows * bits).div_ceil(32), groups])?;
                Ok(Self::Packed { words, bits, groups })
            }
        }
    }

    fn at(&self, row: usize, group: usize) -> i16 {
        match *self {
            Self::Middle(middle) => middle,
            Self::Packed { words, bits, groups } => {
                let a_word = 32 / bits;
                i16::from(words.code(row / a_word * groups + group, row % a_word, bits))
            }
            Self::Bytes { bytes, middle, groups } => middle + i16::from(bytes[row * groups + group] as i8),
        }
    }
}
