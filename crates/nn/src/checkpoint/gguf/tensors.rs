//! A GGUF file's tensor table.

use std::collections::BTreeMap;
use std::ops::Range;

use plimsoll_ops::quant::GgmlType;

use super::cursor::Cursor;
use crate::error::quote;

/// By name.
pub(super) type TensorTable = BTreeMap<String, TensorEntry>;

#[derive(Debug)]
pub(super) struct TensorEntry {
    pub(super) ty: GgmlType,
    /// Outermost first (the file has it innermost first).
    pub(super) shape: Vec<usize>,
    /// Where in the file; inside it, and overlapping no other tensor's.
    pub(super) bytes: Range<usize>,
}

/// Reads the table; `alignment` is a power of two.
pub(super) fn parse(cursor: &mut Cursor<'_>, count: u64, alignment: usize) -> Result<TensorTable, String> {
    const LEAST_ENTRY: usize = 8 + 4 + 8 + 4 + 8; // an empty name, one dimension, a type, an offset
    let count = cursor.fitting(count, LEAST_ENTRY, "the tensor table")?;
    let mut table = TensorTable::new();
    for _ in 0..count {
        let name = cursor.string("a tensor's name")?;
        let problem = |problem| format!("tensor {}: {problem}", quote(name));
        let entry = parse_entry(cursor, name, alignment).map_err(problem)?;
        if table.insert(name.to_owned(), entry).is_some() {
            return Err(problem("is in the tensor table twice".into()));
        }
    }
    let data = cursor.position().next_multiple_of(alignment);
    place(&mut table, data, cursor.len())?;
    Ok(table)
}

/// Reads one entry; its byte range is still relative to the start of the data.
fn parse_entry(cursor: &mut Cursor<'_>, name: &str, alignment: usize) -> Result<TensorEntry, String> {
    let dimensions = cursor.u32(name)?;
    if !(1..=4).contains(&dimensions) {
        return Err(format!("has {dimensions} dimensions; 1 to 4 are possible"));
    }
    let mut shape = Vec::with_capacity(4);
    for _ in 0..dimensions {
        let size = cursor.u64(name)?;
        shape.push(usize::try_from(size).ok().filter(|&s| s > 0).ok_or(format!("has a dimension of {size}"))?);
    }
    shape.reverse();
    let id = cursor.u32(name)?;
    let ty = GgmlType::from_id(id).ok_or(format!("has ggml type {id}, which is not implemented"))?;
    let begin = cursor.u64(name)?;
    let begin = usize::try_from(begin).map_err(|_| format!("has offset {begin}"))?;
    if !begin.is_multiple_of(alignment) {
        return Err(format!("has offset {begin}, which is not a multiple of the alignment {alignment}"));
    }
    let (cols, outer) = shape.split_last().expect("at least one dimension");
    let row_bytes = ty.row_bytes(*cols).ok_or(format!("has rows of {cols}, which {ty:?} cannot store"))?;
    let size = outer.iter().try_fold(row_bytes, |size, &dimension| size.checked_mul(dimension));
    let end = size.and_then(|size| begin.checked_add(size)).ok_or("is larger than memory")?;
    Ok(TensorEntry { ty, shape, bytes: begin..end })
}

/// Moves the entries' ranges to where the data begins, and checks them against the file and each other.
fn place(table: &mut TensorTable, data: usize, file_len: usize) -> Result<(), String> {
    for (name, entry) in table.iter_mut() {
        let Range { start, end } = entry.bytes;
        match (data.checked_add(start), data.checked_add(end)) {
            (Some(start), Some(end)) if end <= file_len => entry.bytes = start..end,
            _ => {
                let name = quote(name);
                return Err(format!(
                    "tensor {name}: ends {end} bytes into the data, beyond the file's end: truncated?"
                ));
            }
        }
    }
    let mut by_start: Vec<_> = table.iter().collect();
    by_start.sort_by_key(|(_, entry)| entry.bytes.start);
    for pair in by_start.windows(2) {
        let [(first, a), (second, b)] = pair else { unreachable!("windows of two") };
        if b.bytes.start < a.bytes.end {
            return Err(format!("tensors {} and {} overlap", quote(first), quote(second)));
        }
    }
    Ok(())
}
