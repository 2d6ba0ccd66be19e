//! What can be wrong with a checkpoint, in words that name the culprit.

use std::path::PathBuf;

/// Why a checkpoint cannot be served. Every message names the file, config field, metadata key or tensor at fault.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },

    /// Truncated, corrupt, or of a layout that is not supported.
    #[error("{path}: {problem}")]
    Format { path: PathBuf, problem: String },

    /// A field of config.json, or the equivalent of a GGUF metadata key, is missing, malformed or not implemented.
    #[error("config field `{field}`: {problem}")]
    Config { field: String, problem: String },

    #[error("architecture {found} is not implemented; implemented are {known}")]
    Architecture { found: String, known: String },

    #[error("tensor {name} is missing from the checkpoint")]
    MissingTensor { name: String },

    #[error("tensor {name} has shape {found:?}, the config asks for {expected:?}")]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize> },

    #[error("tensor {name}: {problem}")]
    Tensor { name: String, problem: String },

    /// Found where the numbers of a matrix are read, and so by loading alone: a survey does not read them. Rows are counted
    /// in the order that Hugging Face has them in.
    #[error("tensor {name}: row {row} {problem}")]
    Row { name: String, row: usize, problem: String },

    /// Tensors that the architecture has no place for: running without them would silently change the model.
    #[error("the architecture has no use for {count} of the checkpoint's tensors, among them {examples}")]
    Unused { count: usize, examples: String },
}

impl CheckpointError {
    pub fn config(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { field: field.into(), problem: problem.into() }
    }

    pub(crate) fn tensor(name: &str, problem: impl ToString) -> Self {
        Self::Tensor { name: quote(name), problem: problem.to_string() }
    }
}

/// A name from an untrusted file, made fit for a message: escaped, and cut when it is very long.
pub(crate) fn quote(name: &str) -> String {
    const LONGEST: usize = 100;
    let mut shown: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        shown.push_str("...");
    }
    shown
}
