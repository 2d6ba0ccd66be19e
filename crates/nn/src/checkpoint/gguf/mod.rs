//! GGUF files, versions 2 and 3, little-endian.
//!
//! Specification: `docs/gguf.md` of the GGML project.

mod config;
mod cursor;
mod metadata;
mod tensors;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::path::Path;

use memmap2::Mmap;
use plimsoll_ops::quant::GgmlType;
use serde_json::Value;

use self::cursor::Cursor;
pub use self::metadata::{GgufArray, GgufMetadata, GgufValue};
use self::tensors::{TensorEntry, TensorTable};
use super::names::GgufArch;
use super::{StoredTensor, TensorInfo, format_error, map};
use crate::CheckpointError;
use crate::rope::{are_paired, unpaired_rows};

/// Divisors of the RoPE frequencies: the config's affair, not the model's.
const ROPE_FREQS: &str = "rope_freqs.weight";

pub(super) struct GgufFile {
    map: Mmap,
    metadata: GgufMetadata,
    tensors: TensorTable,
    arch: &'static GgufArch,
}

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<Self, CheckpointError> {
        let map = map(path)?;
        let (metadata, tensors) = parse(&map).map_err(|problem| format_error(path, problem))?;
        let arch = find_arch(&metadata).map_err(|problem| format_error(path, problem))?;
        Ok(Self { map, metadata, tensors, arch })
    }

    pub(super) fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    pub(super) fn config(&self) -> Result<Value, String> {
        config::synthesize(&self.metadata, &self.tensors, &self.map)
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.model_tensors().map(|name| {
            let entry = &self.tensors[name];
            let (element, bytes) = (format!("{:?}", entry.ty), entry.bytes.len() as u64);
            TensorInfo { name, element, shape: &entry.shape, bytes }
        })
    }

    pub(super) fn weight_bytes(&self) -> u64 {
        self.model_tensors().map(|name| self.tensors[name].bytes.len() as u64).sum()
    }

    pub(super) fn model_tensors(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str).filter(|&name| name != ROPE_FREQS)
    }

    pub(super) fn stored_name(&self, name: &str) -> Option<String> {
        self.arch.gguf_name(name)
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>, CheckpointError> {
        let Some(stored_name) = self.stored_name(name) else { return Ok(None) };
        let Some(entry) = self.tensors.get(&stored_name) else { return Ok(None) };
        let mut bytes = Cow::Borrowed(&self.map[entry.bytes.clone()]);
        if let Some(heads) = self.interleaved_heads(name, &stored_name, entry)? {
            bytes = unpaired_rows(&bytes, entry.shape[0], heads).map_or(bytes, Cow::Owned);
        }
        Ok(Some(StoredTensor { ty: entry.ty, shape: Cow::Borrowed(&entry.shape), bytes }))
    }

    /// The type and the shape of what [`GgufFile::tensor`] would give.
    pub(super) fn layout(&self, name: &str) -> Result<Option<(GgmlType, &[usize])>, CheckpointError> {
        let Some(stored_name) = self.stored_name(name) else { return Ok(None) };
        let Some(entry) = self.tensors.get(&stored_name) else { return Ok(None) };
        self.interleaved_heads(name, &stored_name, entry)?;
        Ok(Some((entry.ty, &entry.shape)))
    }

    /// For a projection whose rows are interleaved for RoPE: its heads, which its rows divide into.
    fn interleaved_heads(
        &self,
        name: &str,
        stored_name: &str,
        entry: &TensorEntry,
    ) -> Result<Option<usize>, CheckpointError> {
        let Some(key) = self.interleaved_heads_key(name) else { return Ok(None) };
        let heads = self.metadata.get(&format!("{}.attention.{key}", self.arch.name)).and_then(GgufValue::as_u64);
        let heads = heads.and_then(|heads| usize::try_from(heads).ok());
        match heads.filter(|heads| are_paired(entry.shape[0], *heads)) {
            Some(heads) => Ok(Some(heads)),
            None => {
                let problem = "its rows do not divide into the heads that the metadata counts";
                Err(CheckpointError::tensor(stored_name, problem))
            }
        }
    }

    /// For a projection whose rows are interleaved for RoPE: the metadata key that counts its heads.
    fn interleaved_heads_key(&self, name: &str) -> Option<&'static str> {
        match name {
            _ if !self.arch.interleaved_rope => None,
            name if name.contains(".self_attn.q_proj.") => Some("head_count"),
            name if name.contains(".self_attn.k_proj.") => Some("head_count_kv"),
            _ => None,
        }
    }
}

/// Reads everything before the tensors' data.
fn parse(file: &[u8]) -> Result<(GgufMetadata, TensorTable), String> {
    let mut cursor = Cursor::new(file);
    if cursor.take(4, "the magic number")? != b"GGUF" {
        return Err("is not a GGUF file (give a .gguf file, or a folder of safetensors)".into());
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => return Err("is a big-endian GGUF file".into()),
        version => return Err(format!("has GGUF version {version}; versions 2 and 3 are implemented")),
    }
    let tensors = cursor.u64("the tensor count")?;
    let pairs = cursor.u64("the metadata count")?;
    let metadata = GgufMetadata::parse(&mut cursor, pairs)?;
    let tensors = tensors::parse(&mut cursor, tensors, metadata.alignment()?)?;
    Ok((metadata, tensors))
}

fn find_arch(metadata: &GgufMetadata) -> Result<&'static GgufArch, String> {
    let name = metadata.get("general.architecture").and_then(GgufValue::as_str);
    let name = name.ok_or("lacks the metadata key general.architecture")?;
    if metadata.get("split.count").and_then(GgufValue::as_u64).is_some_and(|count| count > 1) {
        return Err("is one part of a split model (metadata key split.count); merge the parts first".into());
    }
    GgufArch::find(name).ok_or_else(|| format!("has general.architecture {name:?}, which is not implemented"))
}
