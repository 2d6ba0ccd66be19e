//! A folder of safetensors: one file, or shards and an index.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path};

use ::safetensors::{Dtype, SafeTensors};
use memmap2::Mmap;
use plimsoll_ops::quant::GgmlType;
use serde_json::Value;

use super::{ByteTensor, StoredTensor, format_error, map, read_json};
use crate::CheckpointError;
use crate::error::quote;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

pub(super) struct SafetensorsFolder {
    shards: Vec<Mmap>,
    tensors: BTreeMap<String, Location>,
}

struct Location {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Within the shard's file.
    begin: usize,
    end: usize,
}

impl SafetensorsFolder {
    pub(super) fn open(folder: &Path) -> Result<Self, CheckpointError> {
        if folder.join(INDEX).exists() {
            return Self::open_sharded(folder);
        }
        if !folder.join(SINGLE).exists() {
            let problem = format!("holds neither {SINGLE} nor {INDEX}; give a folder that does, or a GGUF file");
            return Err(format_error(folder, problem));
        }
        let shard = map(&folder.join(SINGLE))?;
        let tensors = locate(&folder.join(SINGLE), &shard, 0)?;
        Ok(Self { shards: vec![shard], tensors })
    }

    fn open_sharded(folder: &Path) -> Result<Self, CheckpointError> {
        let index_path = folder.join(INDEX);
        let index = read_json(&index_path)?;
        let listed = listed_shards(&index).map_err(|problem| format_error(&index_path, problem))?;
        let mut opened = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        for (file_name, names) in listed {
            let path = folder.join(file_name);
            let shard = map(&path)?;
            let mut located = locate(&path, &shard, opened.shards.len())?;
            for name in names {
                let Some(location) = located.remove(name) else {
                    return Err(format_error(
                        &path,
                        format!("lacks tensor {}, which the index puts there", quote(name)),
                    ));
                };
                opened.tensors.insert(name.to_owned(), location);
            }
            opened.shards.push(shard);
        }
        Ok(opened)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|t| (t.end - t.begin) as u64).sum()
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>, CheckpointError> {
        let Some(location) = self.tensors.get(name) else { return Ok(None) };
        let ty = match location.dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::BF16,
            other => {
                let problem = format!("has dtype {other:?}; only F32, F16 and BF16 are implemented");
                return Err(CheckpointError::tensor(name, problem));
            }
        };
        let bytes = Cow::Borrowed(self.bytes(location));
        Ok(Some(StoredTensor { ty, shape: Cow::Borrowed(&location.shape), bytes }))
    }

    /// See [`super::Checkpoint::byte_tensor`].
    pub(super) fn byte_tensor(&self, name: &str) -> Result<Option<ByteTensor<'_>>, CheckpointError> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(location) if location.dtype == Dtype::U8 => {
                Ok(Some(ByteTensor { shape: &location.shape, bytes: self.bytes(location) }))
            }
            Some(location) => {
                let problem = format!("has dtype {:?}; it must be U8", location.dtype);
                Err(CheckpointError::tensor(name, problem))
            }
        }
    }

    fn bytes(&self, location: &Location) -> &[u8] {
        &self.shards[location.shard][location.begin..location.end]
    }
}

/// The tensors of each shard, from the index's `weight_map`.
fn listed_shards(index: &Value) -> Result<BTreeMap<&str, Vec<&str>>, String> {
    let weight_map = index.get("weight_map").and_then(Value::as_object).ok_or("has no object `weight_map`")?;
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, file) in weight_map {
        let file = file.as_str().ok_or_else(|| format!("weight_map of {} is not a file name", quote(name)))?;
        if !is_plain_file_name(file) {
            let (name, file) = (quote(name), quote(file));
            return Err(format!("puts tensor {name} in {file:?}; a shard must be a plain file name in the folder"));
        }
        shards.entry(file).or_default().push(name);
    }
    Ok(shards)
}

/// Whether `name` can only mean a file directly in the folder it is joined to.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    first && components.next().is_none() && !name.contains(['/', '\\', '\0'])
}

/// Reads and checks a shard's header (the `safetensors` crate checks sizes, overlaps and holes against the file).
fn locate(path: &Path, shard: &Mmap, index: usize) -> Result<BTreeMap<String, Location>, CheckpointError> {
    let (header, metadata) = SafeTensors::read_metadata(shard)
        .map_err(|e| format_error(path, format!("is not a valid safetensors file: {e}")))?;
    let data = 8 + header; // an eight-byte length comes before the header
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (begin, end) = (data + info.data_offsets.0, data + info.data_offsets.1);
        (name, Location { shard: index, dtype: info.dtype, shape: info.shape.clone(), begin, end })
    });
    Ok(tensors.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shards_outside_the_folder_are_refused() {
        for file in ["../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a/", "./a", "C:\\a"] {
            let index = json!({"weight_map": {"lm_head.weight": file}});
            let problem = listed_shards(&index).unwrap_err();
            assert!(problem.contains("lm_head.weight"), "{file}: {problem}");
        }
        let index = json!({"weight_map": {"a": "model-00001-of-00002.safetensors"}});
        assert_eq!(listed_shards(&index).unwrap()["model-00001-of-00002.safetensors"], ["a"]);
    }
}
