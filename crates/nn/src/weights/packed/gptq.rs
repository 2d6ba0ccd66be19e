//! Integers that GPTQ and AWQ pack into words, stored by columns: `[in_features, out_features]`, the transpose of what a
//! matrix is elsewhere.

use super::rows::{integers, order};
use super::scales::{Scales, floats};
use super::{Found, Module};
use crate::CheckpointError;
use crate::quantization::Gptq;

/// `qweight`, I32 `[cols bits / 32, rows]`, with neighbours of a row in a word from its low end; `qzeros`, I32
/// `[groups, rows bits / 32]`; `scales`, `[groups, rows]`; perhaps `g_idx`, I32 `[cols]`, the group of each column.
pub(super) fn find_gptq<'a>(module: &Module<'_, 'a>, gptq: &Gptq) -> Result<Option<Found<'a>>, CheckpointError> {
    let Some(qweight) = module.look("qweight")? else { return Ok(None) };
    let &Module { rows, cols, .. } = module;
    // Some modules may be of other bits than the most.
    let bits = match *qweight.shape {
        [words, _] if words * 8 == cols => 4,
        [words, _] if words * 4 == cols => 8,
        _ => gptq.bits,
    };
    let a_word = 32 / bits;
    let weights = module.words("qweight", &[cols.div_ceil(a_word), rows])?;
    let scales = Scales::by_columns(module, "scales")?;
    let zeros = module.words("qzeros", &[scales.groups(cols), rows.div_ceil(a_word)])?;
    let order = order(module, "g_idx", scales.group)?;
    set_aside_no_bias(module)?;
    let (most, less_one) = (((1u16 << bits) - 1) as u8, u8::from(gptq.zeros_less_one));
    let zero = move |row: usize, group: usize| {
        let stored = zeros.code(group * rows.div_ceil(a_word) + row / a_word, row % a_word, bits);
        i16::from(stored.wrapping_add(less_one) & most)
    };
    let codes = move |row: usize, out: &mut [u8]| {
        for (index, codes) in out.chunks_mut(a_word).enumerate() {
            let word = weights.at(index * rows + row);
            codes.iter_mut().enumerate().for_each(|(nth, code)| *code = (word >> (bits * nth)) as u8 & most);
        }
    };
    integers(module, ("qweight", bits), scales, order, zero, codes).map(Some)
}

/// Early GPTQ checkpoints give every module a bias, of zeros where the model has none.
fn set_aside_no_bias(module: &Module<'_, '_>) -> Result<(), CheckpointError> {
    let Some(bias) = module.look("bias")? else { return Ok(()) };
    if floats(&bias).is_some_and(|bias| bias.iter().all(|&value| value == 0.0)) {
        module.find("bias")?;
    }
    Ok(())
}

/// Where in a word AWQ puts each of eight neighbours.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// `qweight`, I32 `[cols, rows / 8]`, with eight rows in a word; `qzeros`, I32 `[groups, rows / 8]`, the same; `scales`,
/// `[groups, rows]`.
pub(super) fn find_awq<'a>(module: &Module<'_, 'a>) -> Result<Option<Found<'a>>, CheckpointError> {
    if module.look("qweight")?.is_none() {
        return Ok(None);
    }
    let &Module { rows, cols, .. } = module;
    let words = rows.div_ceil(8);
    let weights = module.words("qweight", &[cols, words])?;
    let scales = Scales::by_columns(module, "scales")?;
    let zeros = module.words("qzeros", &[scales.groups(cols), words])?;
    let zero = move |row: usize, group: usize| i16::from(zeros.code(group * words + row / 8, AWQ_PLACES[row % 8], 4));
    let codes = move |row: usize, out: &mut [u8]| {
        for (col, code) in out.iter_mut().enumerate() {
            *code = weights.code(col * words + row / 8, AWQ_PLACES[row % 8], 4);
        }
    };
    integers(module, ("qweight", 4), scales, None, zero, codes).map(Some)
}
