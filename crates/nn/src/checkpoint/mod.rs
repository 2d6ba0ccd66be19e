//! Checkpoints on disk: a GGUF file, or a folder of safetensors as Hugging Face publishes them.
//!
//! Both are memory-mapped and untrusted: every count, length and offset is checked against the file's size before it
//! is believed, and no allocation is larger than a small multiple of the file. To the rest of the house both look like
//! the Hugging Face layout: its config.json, its tensor names, its row order. This module must never know what a
//! tensor is for beyond that translation.

mod gguf;
mod names;
mod safetensors;

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use memmap2::Mmap;
use plimsoll_ops::quant::GgmlType;
use serde_json::Value;

use crate::CheckpointError;
use gguf::GgufFile;
pub use gguf::{GgufArray, GgufMetadata, GgufValue};
use safetensors::SafetensorsFolder;

/// A checkpoint, opened: its config is read and its tensors are found, none is loaded.
pub struct Checkpoint {
    path: PathBuf,
    config: Value,
    files: Files,
}

enum Files {
    Gguf(Box<GgufFile>),
    Safetensors(SafetensorsFolder),
}

/// A tensor as it is stored, in Hugging Face's row order.
pub(crate) struct StoredTensor<'a> {
    pub(crate) ty: GgmlType,
    /// Outermost first.
    pub(crate) shape: Cow<'a, [usize]>,
    /// Exactly what the type and the shape ask for.
    pub(crate) bytes: Cow<'a, [u8]>,
}

/// A tensor as it is stored, of any element type: packed numbers, exponents, floats of 8 bits.
pub(crate) struct RawTensor<'a> {
    pub(crate) dtype: Dtype,
    /// Outermost first.
    pub(crate) shape: &'a [usize],
    /// As many as the type and the shape ask for.
    pub(crate) bytes: &'a [u8],
}

/// What a checkpoint's header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// As the checkpoint itself calls it.
    pub name: &'a str,
    /// The type of its elements, as its file format calls it.
    pub element: String,
    /// Outermost first.
    pub shape: &'a [usize],
    /// As stored.
    pub bytes: u64,
}

impl Checkpoint {
    /// Opens a GGUF file, or a folder that holds config.json and either model.safetensors or the shards that
    /// model.safetensors.index.json names.
    ///
    /// # Errors
    /// The path holds neither, or what it holds is truncated, corrupt or of an unknown architecture or layout.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let metadata = path.metadata().map_err(|source| CheckpointError::Io { path: path.into(), source })?;
        let (files, config) = if metadata.is_dir() {
            let folder = SafetensorsFolder::open(path)?;
            (Files::Safetensors(folder), read_json(&path.join("config.json"))?)
        } else {
            let file = GgufFile::open(path)?;
            let config = file.config().map_err(|problem| format_error(path, problem))?;
            (Files::Gguf(Box::new(file)), config)
        };
        Ok(Self { path: path.into(), config, files })
    }

    /// The Hugging Face config.json, or its equivalent synthesized from a GGUF file's metadata.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Where the checkpoint was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata of a GGUF file (its vocabulary, its chat template).
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        match &self.files {
            Files::Gguf(file) => Some(file.metadata()),
            Files::Safetensors(_) => None,
        }
    }

    /// Bytes of all tensors as stored.
    pub fn weight_bytes(&self) -> u64 {
        match &self.files {
            Files::Gguf(file) => file.weight_bytes(),
            Files::Safetensors(folder) => folder.weight_bytes(),
        }
    }

    /// All tensors that a model could be made of, sorted by name.
    pub fn tensors(&self) -> Vec<TensorInfo<'_>> {
        match &self.files {
            Files::Gguf(file) => file.tensors().collect(),
            Files::Safetensors(folder) => folder.tensors().collect(),
        }
    }

    /// The tensor that Hugging Face calls `name`; `None` if the checkpoint has no such tensor.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<StoredTensor<'_>>, CheckpointError> {
        match &self.files {
            Files::Gguf(file) => file.tensor(name),
            Files::Safetensors(folder) => folder.tensor(name),
        }
    }

    /// The type and the shape, outermost first, of the tensor that [`Checkpoint::tensor`] would give.
    #[expect(clippy::type_complexity, reason = "a type and a shape, which may be absent or malformed")]
    pub(crate) fn layout(&self, name: &str) -> Result<Option<(GgmlType, Cow<'_, [usize]>)>, CheckpointError> {
        match &self.files {
            Files::Gguf(file) => Ok(file.layout(name)?.map(|(ty, shape)| (ty, Cow::Borrowed(shape)))),
            Files::Safetensors(folder) => Ok(folder.tensor(name)?.map(|tensor| (tensor.ty, tensor.shape))),
        }
    }

    /// The tensor that Hugging Face calls `name`, of any element type; `None` if the checkpoint has no such tensor. A GGUF
    /// file has none.
    pub(crate) fn raw_tensor(&self, name: &str) -> Result<Option<RawTensor<'_>>, CheckpointError> {
        let Files::Safetensors(folder) = &self.files else { return Ok(None) };
        Ok(folder.raw_tensor(name))
    }

    /// What the checkpoint itself calls the tensor that Hugging Face calls `name`.
    pub(crate) fn stored_name(&self, name: &str) -> String {
        match &self.files {
            Files::Gguf(file) => file.stored_name(name).unwrap_or_else(|| name.to_owned()),
            Files::Safetensors(_) => name.to_owned(),
        }
    }

    /// The tensors that a model is made of, by the checkpoint's own names, sorted.
    pub(crate) fn stored_names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.files {
            Files::Gguf(file) => Box::new(file.model_tensors()),
            Files::Safetensors(folder) => Box::new(folder.names()),
        }
    }

    /// Whether norm weights that Hugging Face stores around zero (to be used as `1 + w`) are stored ready for use.
    pub(crate) fn has_folded_norms(&self) -> bool {
        matches!(self.files, Files::Gguf(_))
    }
}

fn format_error(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Format { path: path.into(), problem: problem.into() }
}

/// Opens a regular file: a folder cannot be read, and a pipe or a device might never end.
fn open_file(path: &Path) -> Result<File, CheckpointError> {
    let error = |source| CheckpointError::Io { path: path.into(), source };
    if !path.metadata().map_err(error)?.is_file() {
        return Err(format_error(path, "is not a regular file"));
    }
    File::open(path).map_err(error)
}

/// Maps a file for reading.
fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let error = |source| CheckpointError::Io { path: path.into(), source };
    let file = open_file(path)?;
    // SAFETY: the map is read-only and private to this process. Another process that truncates the file while the
    // weights are being read would fault us; checkpoints are installed whole and not edited in place.
    unsafe { Mmap::map(&file) }.map_err(error)
}

/// Reads a JSON file of a sane size.
fn read_json(path: &Path) -> Result<Value, CheckpointError> {
    const LARGEST: u64 = 64 << 20;
    let error = |source| CheckpointError::Io { path: path.into(), source };
    let mut bytes = Vec::new();
    open_file(path)?.take(LARGEST + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format_error(path, format!("is larger than {LARGEST} bytes; is this the right file?")));
    }
    serde_json::from_slice(&bytes).map_err(|e| format_error(path, format!("is not valid JSON: {e}")))
}
