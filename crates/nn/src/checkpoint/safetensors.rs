//! A folder of safetensors: one file, or shards and an index.

mod header;

use std::borrow::Cow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use ::safetensors::Dtype;
use memmap2::Mmap;
use plimsoll_ops::quant::GgmlType;
use serde_json::Value;

use self::header::{TensorEntry, TensorTable};
use super::{RawTensor, StoredTensor, TensorInfo, format_error, map, read_json};
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
    /// In the shard's file.
    entry: TensorEntry,
}

impl SafetensorsFolder {
    pub(super) fn open(folder: &Path) -> Result<Self, CheckpointError> {
        let mut opened = Self { shards: Vec::new(), tensors: BTreeMap::new() };
        if is_there(&folder.join(SINGLE)) {
            let path = folder.join(SINGLE);
            let (shard, table) = open_shard(&path)?;
            opened.add(&path, shard, table)?;
        } else if is_there(&folder.join(INDEX)) {
            opened.add_listed(folder)?;
        } else {
            let others = match gguf_file(folder) {
                Some(file) => format!("it holds {}: give that file", quote(&file)),
                None => "give a folder that does, or a GGUF file".into(),
            };
            return Err(format_error(folder, format!("holds neither {SINGLE} nor {INDEX}; {others}")));
        }
        Ok(opened)
    }

    /// All shards of the index, each of which must hold the tensors that the index puts there. What the index does not
    /// list is taken, too: whether it is of use is not known here.
    fn add_listed(&mut self, folder: &Path) -> Result<(), CheckpointError> {
        let index_path = folder.join(INDEX);
        let index = read_json(&index_path)?;
        let listed = listed_shards(&index).map_err(|problem| format_error(&index_path, problem))?;
        for (file_name, names) in listed {
            let path = folder.join(file_name);
            let (shard, mut table) = open_shard(&path)?;
            if let Some(name) = names.iter().find(|name| !table.contains_key(**name)) {
                let problem = format!("lacks tensor {}, which {INDEX} puts there", quote(name));
                return Err(format_error(&path, problem));
            }
            // Of a tensor that several shards hold, the index says which one is meant.
            let is_elsewhere = |name: &str| !names.contains(name) && index["weight_map"].get(name).is_some();
            table.retain(|name, _| !is_elsewhere(name));
            self.add(&path, shard, table)?;
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, shard: Mmap, table: TensorTable) -> Result<(), CheckpointError> {
        for (name, entry) in table {
            match self.tensors.entry(name) {
                Entry::Vacant(vacant) => vacant.insert(Location { shard: self.shards.len(), entry }),
                Entry::Occupied(taken) => {
                    let name = quote(taken.key());
                    let problem =
                        format!("holds tensor {name}, as a shard before it does; {INDEX} must say which is meant");
                    return Err(format_error(path, problem));
                }
            };
        }
        self.shards.push(shard);
        Ok(())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn tensors(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, Location { entry, .. })| TensorInfo {
            name,
            element: format!("{:?}", entry.dtype),
            shape: &entry.shape,
            bytes: entry.bytes.len() as u64,
        })
    }

    pub(super) fn weight_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.entry.bytes.len() as u64).sum()
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>, CheckpointError> {
        let Some(location) = self.tensors.get(name) else { return Ok(None) };
        let ty = match location.entry.dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::BF16,
            other => {
                let problem = format!("has dtype {other:?}; only F32, F16 and BF16 are implemented");
                return Err(CheckpointError::tensor(name, problem));
            }
        };
        let bytes = Cow::Borrowed(self.bytes(location));
        Ok(Some(StoredTensor { ty, shape: Cow::Borrowed(&location.entry.shape), bytes }))
    }

    /// See [`super::Checkpoint::raw_tensor`].
    pub(super) fn raw_tensor(&self, name: &str) -> Option<RawTensor<'_>> {
        let location = self.tensors.get(name)?;
        let TensorEntry { dtype, shape, .. } = &location.entry;
        Some(RawTensor { dtype: *dtype, shape, bytes: self.bytes(location) })
    }

    fn bytes(&self, location: &Location) -> &[u8] {
        &self.shards[location.shard][location.entry.bytes.clone()]
    }
}

/// The tensors of each shard, from the index's `weight_map`.
fn listed_shards(index: &Value) -> Result<BTreeMap<&str, BTreeSet<&str>>, String> {
    let weight_map = index.get("weight_map").and_then(Value::as_object).ok_or("has no object `weight_map`")?;
    let mut shards: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, file) in weight_map {
        let file = file.as_str().ok_or_else(|| format!("weight_map of {} is not a file name", quote(name)))?;
        if !is_plain_file_name(file) {
            let (name, file) = (quote(name), quote(file));
            return Err(format!("puts tensor {name} in {file:?}; a shard must be a plain file name in the folder"));
        }
        shards.entry(file).or_default().insert(name);
    }
    Ok(shards)
}

/// Whether `name` can only mean a file directly in the folder it is joined to.
fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first = matches!(components.next(), Some(Component::Normal(part)) if part == name);
    first && components.next().is_none() && !name.contains(['/', '\\', '\0'])
}

/// The first GGUF file in a folder, if it has one.
fn gguf_file(folder: &Path) -> Option<String> {
    let entries = folder.read_dir().ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    entries.filter(|name| name.ends_with(".gguf")).min()
}

/// Also a link that leads nowhere is there, and wrong.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Maps a shard and reads its header.
fn open_shard(path: &Path) -> Result<(Mmap, TensorTable), CheckpointError> {
    let shard = map(path)?;
    let table = header::parse(&shard).map_err(|problem| format_error(path, problem))?;
    Ok((shard, table))
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
        for index in [json!([]), json!({}), json!({"weight_map": []}), json!({"weight_map": {"a": 1}})] {
            assert!(listed_shards(&index).unwrap_err().contains("weight_map"), "{index}");
        }
        let index = json!({"weight_map": {"a": "model-00001-of-00002.safetensors"}});
        assert_eq!(listed_shards(&index).unwrap()["model-00001-of-00002.safetensors"], BTreeSet::from(["a"]));
    }
}
