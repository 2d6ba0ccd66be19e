//! Numbers into rows of a packed format, each to the nearest that the format has under a scale of its group: for weights
//! that are published in full and wanted smaller, or made up.
//!
//! It must never know whose weights they are.

use candle_core::{Result, bail};
use half::{bf16, f16};

use super::{Codes, GgmlType, Grouped, RowFormat};
use crate::e4m3;

/// The largest E4M3.
const E4M3_MOST: f32 = 448.0;
/// Elements of a block of MXFP4, and the largest of them.
const MX_BLOCK: usize = 32;
const E2M1_MOST: f32 = 6.0;

/// Appends a row to `out`. Of integers, the zero and the steps of a group are chosen so that its smallest and its largest
/// number (and 0) are hit, but for 8 bits, where only the largest magnitude is; of floats, so that the largest magnitude
/// is (of MXFP4, which has powers of two for scales, within a factor of 2).
///
/// # Errors
/// The format has no such rows, or is one that is only read (GGML's quantized ones but MXFP4); or a number is not
/// finite.
pub fn encode_row(format: RowFormat, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    if format.row_bytes(values.len()).is_none() {
        bail!("there are no rows of {} {format} elements", values.len());
    }
    if !values.iter().all(|value| value.is_finite()) {
        bail!("has an element that is not a number");
    }
    match format {
        RowFormat::Ggml(GgmlType::F32) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        RowFormat::Ggml(GgmlType::F16) => out.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes())),
        RowFormat::Ggml(GgmlType::BF16) => out.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes())),
        RowFormat::Ggml(GgmlType::MXFP4) => values.as_chunks().0.iter().for_each(|block| mxfp4(block, out)),
        RowFormat::Ggml(ty) => bail!("nothing is quantized to {ty:?}"),
        RowFormat::Grouped(format) => values.chunks(format.group).for_each(|values| group(format, values, out)),
    }
    Ok(())
}

fn group(format: Grouped, values: &[f32], out: &mut Vec<u8>) {
    match format.codes {
        Codes::E4M3 => {
            let scale = magnitude(values) / E4M3_MOST;
            let inverse = inverse(scale);
            format.push_group(out, scale, 0, values.iter().map(|value| e4m3::encode(value * inverse)));
        }
        Codes::Int8 => {
            let scale = magnitude(values) / 127.0;
            let inverse = inverse(scale);
            let code = |value: &f32| ((value * inverse).round_ties_even() + 128.0) as u8;
            format.push_group(out, scale, 128, values.iter().map(code));
        }
        Codes::Int4 => {
            let (least, most) =
                values.iter().fold((0f32, 0f32), |(least, most), &value| (least.min(value), most.max(value)));
            // Halved, since a range of numbers may not be one.
            let scale = 2.0 * ((most / 2.0 - least / 2.0) / 15.0);
            let inverse = inverse(scale);
            let zero = (-least * inverse).round_ties_even();
            let code = |value: f32| ((value * inverse).round_ties_even() + zero).clamp(0.0, 15.0) as u8;
            let pairs = values.as_chunks::<2>().0.iter();
            format.push_group(out, scale, zero as i16, pairs.map(|&[low, high]| code(low) | code(high) << 4));
        }
    }
}

fn magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

/// What numbers are multiplied with to be counted in steps of `scale`; of steps too small for that, all are none.
fn inverse(scale: f32) -> f32 {
    if scale < 1e-37 { 0.0 } else { 1.0 / scale }
}

/// As the OCP Microscaling Formats (v1.0, 6.3) propose it: the scale's exponent is the largest magnitude's less that of
/// the largest element, and what is beyond that element becomes it.
fn mxfp4(block: &[f32; MX_BLOCK], out: &mut Vec<u8>) {
    const BIAS: i32 = 127;
    let exponent = (magnitude(block).to_bits() >> 23) as i32 - BIAS - 2;
    let exponent = exponent.max(-BIAS);
    out.push((exponent + BIAS) as u8);
    // In two steps: the whole may be beyond the normal numbers.
    let (first, second) = (2f32.powi(-exponent / 2), 2f32.powi(-exponent - -exponent / 2));
    let code = |value: f32| e2m1(value * first * second);
    out.extend((0..MX_BLOCK / 2).map(|at| code(block[at]) | code(block[at + MX_BLOCK / 2]) << 4));
}

/// The nearest E2M1, ties to an even mantissa.
fn e2m1(value: f32) -> u8 {
    let magnitude = value.abs().min(E2M1_MOST);
    // Steps of 1/2 below 2, of 1 below 4, of 2 from there on.
    let code = match magnitude {
        ..2.0 => (2.0 * magnitude).round_ties_even(),
        ..4.0 => magnitude.round_ties_even() + 2.0,
        _ => (magnitude / 2.0).round_ties_even() + 4.0,
    };
    code as u8 | if value.is_sign_negative() { 8 } else { 0 }
}
