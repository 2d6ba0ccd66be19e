//! Where a model's tensors come from: the one place that tells a checkpoint from made-up weights. What becomes of a
//! tensor then (packing, a device) is not known here.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeSet;

use plimsoll_ops::quant::GgmlType;
use safetensors::Dtype;

use super::dummy::{Dummy, Fill};
use crate::CheckpointError;
use crate::checkpoint::{Checkpoint, RawTensor, StoredTensor};
use crate::error::quote;
use crate::quantization::{Method, Quantization};

/// A model's tensors, by the names that Hugging Face gives them.
pub(super) enum Source<'a> {
    Checkpoint(Stored<'a>),
    /// Seeded random numbers at whatever shapes are asked for.
    Dummy(Dummy),
    /// For a dry run of the loading, which asks for the sizes of matrices, and for no matrix.
    Sizes(Dummy),
}

/// What a tensor is to its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `[out_features, in_features]`, or a stack of such, turned.
    Matrix,
    /// What is added to a layer's outputs, or to scores.
    Bias,
    Norm,
    /// A norm whose weights are stored around zero.
    ZeroCentredNorm,
}

impl<'a> Source<'a> {
    /// The tensor `name`, of exactly the shape `expected`.
    pub(super) fn tensor(
        &self,
        name: &str,
        expected: &[usize],
        role: Role,
    ) -> Result<StoredTensor<'a>, CheckpointError> {
        match self {
            Source::Checkpoint(stored) => stored.tensor(name, expected),
            Source::Dummy(dummy) | Source::Sizes(dummy) => {
                let bytes = Cow::Owned(dummy.make(name, expected, fill(name, role, expected, dummy.has_experts())));
                Ok(StoredTensor { ty: dummy.ty(), shape: Cow::Owned(expected.to_vec()), bytes })
            }
        }
    }

    /// The bytes of the tensor `name`, of exactly the shape `expected`; `None` if there is none.
    pub(super) fn bytes(&self, name: &str, expected: &[usize]) -> Result<Option<&'a [u8]>, CheckpointError> {
        match self {
            Source::Checkpoint(stored) => stored.bytes(name, expected),
            Source::Dummy(_) | Source::Sizes(_) => Ok(None),
        }
    }

    /// What the tensor that Hugging Face calls `name` is called where it comes from.
    pub(super) fn stored_name(&self, name: &str) -> String {
        match self {
            Source::Checkpoint(stored) => stored.checkpoint.stored_name(name),
            Source::Dummy(_) | Source::Sizes(_) => name.to_owned(),
        }
    }

    /// Whether no numbers are to be looked at ([`Stored::headers_of`]).
    pub(super) fn has_headers_alone(&self) -> bool {
        matches!(self, Source::Checkpoint(stored) if stored.headers_alone)
    }

    /// As [`Checkpoint::has_folded_norms`].
    pub(super) fn has_folded_norms(&self) -> bool {
        matches!(self, Source::Checkpoint(stored) if stored.checkpoint.has_folded_norms())
    }
}

/// What the tensor `name` is made of, of a model that may have experts. Matrices keep what passes through them at its size
/// or below it, and norms do nothing but normalize.
pub(super) fn fill(name: &str, role: Role, shape: &[usize], has_experts: bool) -> Fill {
    match role {
        Role::Matrix => {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let in_features = *shape.last().expect("a matrix has two dimensions");
            Fill::Normal(matrix_deviation(module, in_features, has_experts))
        }
        Role::Bias if has_experts => Fill::Normal(DEVIATION * FAINT),
        Role::Bias => Fill::Normal(DEVIATION),
        Role::Norm => Fill::Constant(1.0),
        Role::ZeroCentredNorm => Fill::Constant(0.0),
    }
}

/// As parameters are commonly initialized.
const DEVIATION: f32 = 0.02;

/// By how much smaller is what would make tokens alike, where there are experts.
const FAINT: f32 = 1.0 / 32.0;

/// Of the elements of a module's matrix: as matrices are commonly initialized, or less.
///
/// Random layers give all tokens of a sequence much in common (an average of its values, biases), and then most go to the
/// same experts, to which trained routers would not send them. So where there are experts, each token's embedding
/// prevails over what layers add to it: differing tokens then choose experts as if by chance.
pub(super) fn matrix_deviation(module: &str, in_features: usize, has_experts: bool) -> f32 {
    let common = DEVIATION.min((in_features as f32).powf(-0.5));
    match module.rsplit('.').next() {
        Some("embed_tokens") if has_experts => 1.0,
        Some("o_proj" | "down_proj") if has_experts => common * FAINT,
        _ => common,
    }
}

/// A checkpoint, and the account of what was used of it.
pub(super) struct Stored<'a> {
    checkpoint: &'a Checkpoint,
    quantization: Quantization,
    headers_alone: bool,
    /// Stored names of the tensors that were asked for, or set aside.
    used: RefCell<BTreeSet<String>>,
}

impl<'a> Stored<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, quantization: Quantization) -> Self {
        Self { checkpoint, quantization, headers_alone: false, used: RefCell::default() }
    }

    /// Of whose tensors no numbers are looked at, but for columns' orders, on which it depends what becomes of a matrix.
    pub(super) fn headers_of(checkpoint: &'a Checkpoint, quantization: Quantization) -> Self {
        Self { headers_alone: true, ..Self::new(checkpoint, quantization) }
    }

    pub(super) fn headers_alone(&self) -> bool {
        self.headers_alone
    }

    pub(super) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    pub(super) fn quantization(&self) -> &Quantization {
        &self.quantization
    }

    /// A tensor of whatever type and shape, if it is there. It is not yet noted as used.
    pub(super) fn raw(&self, name: &str) -> Result<Option<RawTensor<'a>>, CheckpointError> {
        self.checkpoint.raw_tensor(name)
    }

    /// Notes that a tensor is used.
    pub(super) fn note(&self, name: &str) {
        self.used.borrow_mut().insert(self.checkpoint.stored_name(name));
    }

    /// Finds a tensor and checks its shape.
    pub(super) fn tensor(&self, name: &str, expected: &[usize]) -> Result<StoredTensor<'a>, CheckpointError> {
        let Some(tensor) = self.checkpoint.tensor(name)? else {
            return Err(CheckpointError::MissingTensor { name: self.checkpoint.stored_name(name) });
        };
        self.take(name, &tensor.shape, expected)?;
        Ok(tensor)
    }

    /// As [`Stored::tensor`], but that nothing is read: the tensor's type.
    pub(super) fn check(&self, name: &str, expected: &[usize]) -> Result<GgmlType, CheckpointError> {
        let Some((ty, shape)) = self.checkpoint.layout(name)? else {
            return Err(CheckpointError::MissingTensor { name: self.checkpoint.stored_name(name) });
        };
        self.take(name, &shape, expected)?;
        Ok(ty)
    }

    /// As [`Stored::tensor`], of a tensor of bytes that may be absent.
    fn bytes(&self, name: &str, expected: &[usize]) -> Result<Option<&'a [u8]>, CheckpointError> {
        let Some(tensor) = self.checkpoint.raw_tensor(name)? else { return Ok(None) };
        if tensor.dtype != Dtype::U8 {
            let problem = format!("has dtype {:?}; it must be U8", tensor.dtype);
            return Err(CheckpointError::tensor(name, problem));
        }
        self.take(name, tensor.shape, expected)?;
        Ok(Some(tensor.bytes))
    }

    /// Notes that a tensor is used, if its shape is the `expected` one.
    fn take(&self, name: &str, found: &[usize], expected: &[usize]) -> Result<(), CheckpointError> {
        let name = self.checkpoint.stored_name(name);
        if found != expected {
            let (expected, found) = (expected.to_vec(), found.to_vec());
            return Err(CheckpointError::Shape { name, expected, found });
        }
        self.used.borrow_mut().insert(name);
        Ok(())
    }

    pub(super) fn ignore(&self, name: &str) {
        self.used.borrow_mut().insert(self.checkpoint.stored_name(name));
    }

    /// Sets aside all tensors whose names begin so; returns their bytes.
    pub(super) fn ignore_all(&self, prefix: &str) -> u64 {
        let names = self.checkpoint.stored_names().filter(|name| name.starts_with(prefix));
        let mut bytes = 0;
        for name in names {
            let tensor = self.checkpoint.tensor(name).ok().flatten();
            bytes += tensor.map_or(0, |tensor| tensor.bytes.len() as u64);
            self.used.borrow_mut().insert(name.to_owned());
        }
        bytes
    }

    /// Whether there is the tensor `name`.
    pub(super) fn holds(&self, name: &str) -> bool {
        let name = self.checkpoint.stored_name(name);
        self.checkpoint.stored_names().any(|stored| stored == name)
    }

    /// Whether there is a tensor whose name begins so.
    pub(super) fn has(&self, start: &str) -> bool {
        self.checkpoint.stored_names().any(|name| name.starts_with(start))
    }

    /// Refuses tensors that nothing asked for.
    pub(super) fn finish(&self) -> Result<(), CheckpointError> {
        let used = self.used.borrow();
        let quantized = !matches!(self.quantization.method(), Method::Plain);
        let is_aside = |name: &str| is_derived(name) || quantized && is_of_activations(name);
        let unused = |name: &&str| !used.contains(*name) && !is_aside(name);
        let unused: Vec<&str> = self.checkpoint.stored_names().filter(unused).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let examples: Vec<String> = unused.iter().take(3).map(|name| quote(name)).collect();
        Err(CheckpointError::Unused { count: unused.len(), examples: examples.join(", ") })
    }
}

/// Buffers that old checkpoints carry although the config determines them.
fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// Scales and zeros of quantized activations, keys and values: here they are what they are.
fn is_of_activations(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "input_scale",
        "input_scale_ub",
        "input_zero_point",
        "output_scale",
        "output_zero_point",
        "q_scale",
        "k_scale",
        "v_scale",
        "kv_scale",
    ];
    NAMES.contains(&name.rsplit('.').next().unwrap_or(name))
}
