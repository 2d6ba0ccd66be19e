//! A model's view of a checkpoint while it loads: tensors by name under a prefix, checked against the shapes that the
//! config implies, merged and packed for the ops.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::rc::Rc;

use candle_core::{Device, Tensor};
use plimsoll_ops::linear::{Activations, Linear, RowSource};
use plimsoll_ops::quant::dequantize_row;

use crate::CheckpointError;
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::quote;

/// The tensors under one name prefix. Cloning and descending ([`Weights::pp`]) are cheap; all views of a checkpoint
/// share the account of what was used.
#[derive(Clone)]
pub struct Weights<'a> {
    loader: Rc<Loader<'a>>,
    /// Empty, or ending in a dot.
    prefix: String,
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    activations: Activations,
    /// Called with the bytes loaded so far and the bytes of the whole checkpoint.
    progress: Box<dyn Fn(u64, u64) + 'a>,
    loaded: Cell<u64>,
    /// Stored names of the tensors that were asked for, or set aside.
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Weights<'a> {
    /// All of a checkpoint. `activations` is how the products with its matrices will be computed; `progress` is
    /// called after each tensor with the bytes loaded so far and in all.
    pub fn new(checkpoint: &'a Checkpoint, activations: Activations, progress: impl Fn(u64, u64) + 'a) -> Self {
        let progress = Box::new(progress);
        let loader = Loader { checkpoint, activations, progress, loaded: Cell::default(), used: RefCell::default() };
        Self { loader: Rc::new(loader), prefix: String::new() }
    }

    /// The view one name deeper: `weights.pp("layers").pp(3)`.
    pub fn pp(&self, name: impl Display) -> Self {
        Self { loader: self.loader.clone(), prefix: format!("{}{name}.", self.prefix) }
    }

    /// Linear layers that share an input, as one: `y = x W^T` with the rows of `(name, out_features)` one after the
    /// other. They may be stored in different formats.
    ///
    /// # Errors
    /// A tensor is missing or not `[out_features, in_features]`.
    pub fn linear(&self, parts: &[(&str, usize)], in_features: usize) -> Result<Linear, CheckpointError> {
        let fetch = |&(name, rows): &(&str, usize)| self.fetch(name, &[rows, in_features]);
        let stored = parts.iter().map(fetch).collect::<Result<Vec<_>, _>>()?;
        let sources: Vec<_> = stored
            .iter()
            .map(|t| RowSource { ty: t.ty, rows: t.shape[0], cols: in_features, bytes: &t.bytes })
            .collect();
        let linear = Linear::pack(&sources, None, self.loader.activations)
            .map_err(|e| CheckpointError::tensor(&self.full_name(parts[0].0), e))?;
        self.report(stored.iter().map(|tensor| tensor.bytes.len() as u64).sum());
        Ok(linear)
    }

    /// A token embedding, `[vocab, hidden]`, whose rows are gathered; a tied head is a clone of it.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn embedding(&self, name: &str, vocab: usize, hidden: usize) -> Result<Linear, CheckpointError> {
        self.linear(&[(name, vocab)], hidden)
    }

    /// A norm's weights `w`, `[len]`, f32, to be multiplied with.
    ///
    /// # Errors
    /// The tensor is missing or not of that length.
    pub fn norm(&self, name: &str, len: usize) -> Result<Tensor, CheckpointError> {
        let stored = self.fetch(name, &[len])?;
        self.vector(name, &stored, 0.0)
    }

    /// As [`Weights::norm`], of a norm whose published weights are stored around zero, to be used as `1 + w`: gives
    /// `1 + w`, also where a conversion has added the one already.
    ///
    /// # Errors
    /// As [`Weights::norm`].
    pub fn zero_centred_norm(&self, name: &str, len: usize) -> Result<Tensor, CheckpointError> {
        let stored = self.fetch(name, &[len])?;
        let offset = if self.loader.checkpoint.has_folded_norms() { 0.0 } else { 1.0 };
        self.vector(name, &stored, offset)
    }

    /// Sets a tensor aside: the checkpoint may have it, the model does not need it.
    pub fn ignore(&self, name: &str) {
        let stored_name = self.loader.checkpoint.stored_name(&self.full_name(name));
        self.loader.used.borrow_mut().insert(stored_name);
    }

    /// To be called when the model is complete: tensors that nothing asked for would silently change the model.
    ///
    /// # Errors
    /// There are such tensors.
    pub fn finish(&self) -> Result<(), CheckpointError> {
        let used = self.loader.used.borrow();
        let unused = |name: &&str| !used.contains(*name) && !is_derived(name);
        let unused: Vec<&str> = self.loader.checkpoint.stored_names().filter(unused).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let examples: Vec<String> = unused.iter().take(3).map(|name| quote(name)).collect();
        Err(CheckpointError::Unused { count: unused.len(), examples: examples.join(", ") })
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}.weight", self.prefix)
    }

    /// Finds a tensor and checks its shape.
    fn fetch(&self, name: &str, expected: &[usize]) -> Result<StoredTensor<'a>, CheckpointError> {
        let checkpoint = self.loader.checkpoint;
        let name = self.full_name(name);
        let stored_name = checkpoint.stored_name(&name);
        let Some(tensor) = checkpoint.tensor(&name)? else {
            return Err(CheckpointError::MissingTensor { name: stored_name });
        };
        if *tensor.shape != *expected {
            let (expected, found) = (expected.to_vec(), tensor.shape.to_vec());
            return Err(CheckpointError::Shape { name: stored_name, expected, found });
        }
        self.loader.used.borrow_mut().insert(stored_name);
        Ok(tensor)
    }

    fn vector(&self, name: &str, stored: &StoredTensor<'_>, offset: f32) -> Result<Tensor, CheckpointError> {
        let mut values = vec![0.0; stored.shape[0]];
        let error = |e| CheckpointError::tensor(&self.full_name(name), e);
        dequantize_row(stored.ty, &stored.bytes, &mut values).map_err(error)?;
        values.iter_mut().for_each(|value| *value += offset);
        self.report(stored.bytes.len() as u64);
        let len = values.len();
        Tensor::from_vec(values, len, &Device::Cpu).map_err(error)
    }

    fn report(&self, bytes: u64) {
        let loader = &self.loader;
        loader.loaded.set(loader.loaded.get() + bytes);
        (loader.progress)(loader.loaded.get(), loader.checkpoint.weight_bytes());
    }
}

/// Buffers that old checkpoints carry although the config determines them.
fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}
