//! Making rows of [`Grouped`] codes, on all threads; and the order of columns that brings groups together.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use candle_core::Result;
use plimsoll_ops::par::parallel_for;
use plimsoll_ops::quant::{Codes, Grouped};
use safetensors::Dtype;

use super::scales::Scales;
use super::{Found, Module, Words};
use crate::CheckpointError;

/// Rows that a thread makes at a time: where a matrix is stored by columns, those of a cache line.
const AT_ONCE: usize = 16;

/// `rows` rows, each `row_bytes` bytes that `make` appends to an empty vector.
pub(in crate::weights) fn make_rows(
    rows: usize,
    row_bytes: usize,
    make: impl Fn(usize, &mut Vec<u8>) -> Result<()> + Sync + Send,
) -> Result<Vec<u8>> {
    let mut bytes = vec![0; rows * row_bytes];
    let chunks: Vec<Mutex<&mut [u8]>> = bytes.chunks_mut((AT_ONCE * row_bytes).max(1)).map(Mutex::new).collect();
    let failed = Mutex::new(None);
    parallel_for(chunks.len(), |index| {
        let mut chunk = chunks[index].lock().unwrap_or_else(PoisonError::into_inner);
        let mut made = Vec::with_capacity(row_bytes);
        for (row, out) in (index * AT_ONCE..).zip(chunk.chunks_exact_mut(row_bytes)) {
            made.clear();
            match make(row, &mut made) {
                Ok(()) => out.copy_from_slice(&made),
                Err(error) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error),
            }
        }
    });
    drop(chunks);
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(bytes),
    }
}

/// The format with the groups of `scales`, and the bytes of its rows.
pub(super) fn format_of(
    module: &Module<'_, '_>,
    tensor: &str,
    codes: Codes,
    scales: &Scales,
) -> std::result::Result<(Grouped, usize), CheckpointError> {
    let (format, cols) = (Grouped { codes, group: scales.group }, module.cols);
    let problem = || {
        let group = scales.group;
        format!("is of {cols} columns in groups of {group}: only multiples of 32 are implemented")
    };
    Ok((format, format.row_bytes(cols).ok_or_else(|| module.error(tensor, problem()))?))
}

/// A matrix of integers: `codes` gives a row's, one a byte, in the order they are stored; `zero` what stands for 0 in a
/// row's group; `order` brings groups together.
pub(super) fn integers<'a>(
    module: &Module<'_, 'a>,
    (tensor, bits): (&str, usize),
    scales: Scales,
    order: Option<Vec<u32>>,
    zero: impl Fn(usize, usize) -> i16 + Sync + Send + 'a,
    codes: impl Fn(usize, &mut [u8]) + Sync + Send + 'a,
) -> std::result::Result<Found<'a>, CheckpointError> {
    let of = if bits == 4 { Codes::Int4 } else { Codes::Int8 };
    let (format, row_bytes) = format_of(module, tensor, of, &scales)?;
    let (name, rows, cols, in_order) = (module.full_name(tensor), module.rows, module.cols, order.clone());
    let read = move || {
        let made = make_rows(rows, row_bytes, |row, out| {
            let mut stored = vec![0; cols];
            codes(row, &mut stored);
            if let Some(order) = &in_order {
                stored = order.iter().map(|&col| stored[col as usize]).collect();
            }
            for (group, codes) in stored.chunks(format.group).enumerate() {
                let (scale, zero) = (scales.at(row, group), zero(row, group));
                match bits {
                    4 => {
                        let pairs = codes.as_chunks::<2>().0.iter();
                        format.push_group(out, scale, zero, pairs.map(|[low, high]| low | high << 4));
                    }
                    _ => format.push_group(out, scale, zero, codes.iter().copied()),
                }
            }
            Ok(())
        });
        made.map(Cow::from).map_err(|e| CheckpointError::tensor(&name, e))
    };
    Ok(Found { format: format.into(), order, stored_bytes: 0, read: Box::new(read) })
}

/// The order of columns in which those of a group lie together, from the group of each column (I32 `[cols]`): `None`
/// where there is no such tensor, or it says that they do already.
pub(super) fn order(
    module: &Module<'_, '_>,
    tensor: &str,
    group: usize,
) -> std::result::Result<Option<Vec<u32>>, CheckpointError> {
    if module.look(tensor)?.is_none() {
        return Ok(None);
    }
    let cols = module.cols;
    let groups = Words(module.exactly(tensor, Dtype::I32, &[cols])?);
    let none = (0..cols).all(|col| groups.at(col) == u32::MAX);
    if none || (0..cols).all(|col| groups.at(col) as usize == col / group) {
        return Ok(None);
    }
    let count = cols.div_ceil(group);
    if let Some(col) = (0..cols).find(|&col| groups.at(col) as usize >= count) {
        let problem = format!("puts column {col} into group {}, of {count}", groups.at(col) as i32);
        return Err(module.error(tensor, problem));
    }
    let mut order: Vec<u32> = (0..cols as u32).collect();
    order.sort_by_key(|&col| groups.at(col as usize));
    if order.iter().enumerate().any(|(at, &col)| groups.at(col as usize) as usize != at / group) {
        return Err(module.error(tensor, format!("has groups that are not of {group} columns each")));
    }
    Ok(Some(order))
}
