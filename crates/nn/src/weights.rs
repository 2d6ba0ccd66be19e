//! A model's view of its weights while it loads: tensors by name under a prefix, of the shapes that the config implies,
//! merged and packed for the ops.

mod dummy;
mod experts;
mod loading;
mod packed;
mod source;
mod survey;

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt::Display;
use std::rc::Rc;

use candle_core::{Device, Tensor};
use plimsoll_ops::linear::{Activations, Linear, Placement, RowSource};
use plimsoll_ops::quant::{GgmlType, RowFormat, dequantize_row};
use serde_json::Value;

use self::dummy::Dummy;
pub use self::experts::ExpertsShape;
use self::loading::Form;
pub use self::loading::{Footprint, Loading, Quantize};
use self::packed::{Matrix, blame};
use self::source::{Role, Source, Stored};
use self::survey::Survey;
use crate::CheckpointError;
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::quantization::{Quantization, is_kept};
use crate::rope::unpaired_rows;

/// The tensors under one name prefix. Cloning and descending ([`Weights::pp`]) are cheap; all views share the account of
/// what was used.
#[derive(Clone)]
pub struct Weights<'a> {
    loader: Rc<Loader<'a>>,
    /// Empty, or ending in a dot.
    prefix: String,
    /// See [`Weights::with_paired_heads`].
    paired_heads: Option<usize>,
}

struct Loader<'a> {
    source: Source<'a>,
    placement: Placement,
    quantize: Option<Quantize>,
    /// See [`Loading`].
    fp8_activations: Option<bool>,
    /// Called with the bytes loaded so far.
    progress: Box<dyn Fn(u64) + 'a>,
    loaded: Cell<u64>,
    /// What is counted of what is not loaded.
    footprint: Footprint,
    /// Tensors are only looked at.
    survey: Option<Survey>,
}

impl<'a> Weights<'a> {
    /// All of a checkpoint; `progress` is called after each tensor with the bytes loaded so far and in all.
    ///
    /// # Errors
    /// The checkpoint is quantized in a way that is not implemented.
    pub fn new(
        checkpoint: &'a Checkpoint,
        loading: impl Into<Loading>,
        progress: impl Fn(u64, u64) + 'a,
    ) -> Result<Self, CheckpointError> {
        let total = checkpoint.weight_bytes();
        let source = Source::Checkpoint(Stored::new(checkpoint, Quantization::parse(checkpoint.config())?));
        Ok(Self::of(source, loading.into(), Box::new(move |loaded| progress(loaded, total))))
    }

    /// Random numbers in place of a checkpoint, of whatever shapes are asked for and of the type that `config` names
    /// (`dtype`, else bf16), or in the form of its `quantization_config`: matrices nearly normal with a deviation of 0.02 or, where that is less, one over the
    /// square root of their inputs; norms that only normalize. A tensor's bits follow from `seed` and its name alone.
    ///
    /// # Errors
    /// `config` names a type that is not implemented.
    pub fn dummy(
        config: &Value,
        seed: u64,
        loading: impl Into<Loading>,
        progress: impl Fn(u64) + 'a,
    ) -> Result<Self, CheckpointError> {
        Ok(Self::of(Source::Dummy(Dummy::new(config, seed)?), loading.into(), Box::new(progress)))
    }

    /// For a dry run: nothing is loaded, what is asked for is counted ([`Weights::loaded_bytes`]) as `footprint` says, of
    /// what [`Weights::dummy`] would make. A model that is built of this cannot compute.
    ///
    /// # Errors
    /// As [`Weights::dummy`].
    pub fn sizes(config: &Value, quantize: Option<Quantize>, footprint: Footprint) -> Result<Self, CheckpointError> {
        let loading = Loading { quantize, ..Activations::F32.into() };
        let mut weights = Self::of(Source::Sizes(Dummy::new(config, 0)?), loading, Box::new(|_| ()));
        Rc::get_mut(&mut weights.loader).expect("nobody else has it yet").footprint = footprint;
        Ok(weights)
    }

    fn of(source: Source<'a>, loading: Loading, progress: Box<dyn Fn(u64) + 'a>) -> Self {
        let Loading { placement, quantize, fp8_activations } = loading;
        let loader = Loader {
            source,
            placement,
            quantize,
            fp8_activations,
            progress,
            loaded: Cell::default(),
            footprint: Footprint::Stored,
            survey: None,
        };
        Self { loader: Rc::new(loader), prefix: String::new(), paired_heads: None }
    }

    /// Bytes of all the tensors that were asked for so far, as stored.
    pub fn loaded_bytes(&self) -> u64 {
        self.loader.loaded.get()
    }

    /// The view one name deeper: `weights.pp("layers").pp(3)`.
    pub fn pp(&self, name: impl Display) -> Self {
        Self { prefix: format!("{}{name}.", self.prefix), ..self.clone() }
    }

    /// For checkpoints in which neighbouring columns of a head of `head_dim` turn together: the rows of `q_proj` and
    /// `k_proj` come out in the order that [`plimsoll_ops::rope`] asks for, in which the halves of a head do.
    pub fn with_paired_heads(self, head_dim: usize) -> Self {
        Self { paired_heads: Some(head_dim), ..self }
    }

    /// Whether there is a tensor whose name begins so; made-up weights are whatever is asked for.
    pub fn has(&self, start: &str) -> bool {
        match &self.loader.source {
            Source::Checkpoint(stored) => stored.has(&format!("{}{start}", self.prefix)),
            Source::Dummy(_) | Source::Sizes(_) => true,
        }
    }

    /// Linear layers that share an input, as one: `y = x W^T` with the rows of `(name, out_features)` one after the
    /// other. They may be stored in different formats.
    ///
    /// # Errors
    /// A tensor is missing or not `[out_features, in_features]`.
    pub fn linear(&self, parts: &[(&str, usize)], in_features: usize) -> Result<Linear, CheckpointError> {
        self.load_linear(parts, in_features, None, Form::Parts)
    }

    /// As [`Weights::linear`], of layers that each have a bias: `y = x W^T + b`.
    ///
    /// # Errors
    /// As [`Weights::linear`], or a bias that is missing or not `[out_features]`.
    pub fn linear_with_bias(&self, parts: &[(&str, usize)], in_features: usize) -> Result<Linear, CheckpointError> {
        self.load_linear(parts, in_features, Some(self.joint_bias(parts)?), Form::Parts)
    }

    fn joint_bias(&self, parts: &[(&str, usize)]) -> Result<Vec<f32>, CheckpointError> {
        let mut bias = Vec::new();
        for (name, rows) in parts {
            bias.extend(self.numbers(&format!("{}{name}.bias", self.prefix), &[*rows], Role::Bias)?);
        }
        Ok(bias)
    }

    fn load_linear(
        &self,
        parts: &[(&str, usize)],
        in_features: usize,
        bias: Option<Vec<f32>>,
        form: Form,
    ) -> Result<Linear, CheckpointError> {
        if let Source::Sizes(dummy) = &self.loader.source {
            let format = |name| self.made_format(name, in_features).unwrap_or(dummy.ty().into());
            let made: Vec<_> = parts.iter().map(|&(name, rows)| (format(name), rows)).collect();
            self.count(&made, in_features, 1, form);
            return self.stand_in();
        }
        if let (Source::Dummy(dummy), Placement::Gpu(device)) = (&self.loader.source, &self.loader.placement) {
            return self.dummy_on_gpu(dummy, parts, in_features, bias, device);
        }
        if let (Source::Checkpoint(stored), true) = (&self.loader.source, self.is_survey()) {
            return self.survey_linear(stored, parts, in_features, form);
        }
        let matrices =
            parts.iter().map(|&(name, rows)| self.matrix(name, rows, in_features)).collect::<Result<Vec<_>, _>>()?;
        let sources = matrices.iter().zip(parts).map(|(matrix, &(_, rows))| matrix.rows(rows, in_features));
        let sources: Vec<RowSource<'_>> = sources.collect();
        let linear = form.load(&sources, bias, &self.loader.placement);
        let linear = linear.and_then(|linear| self.with_activations(linear, parts)).map_err(|error| {
            let names: Vec<String> = parts.iter().map(|(name, _)| self.stored_name(name)).collect();
            blame(names.iter().map(String::as_str).zip(sources.iter().copied()), error)
        })?;
        self.report(matrices.iter().map(|matrix| matrix.stored_bytes).sum());
        Ok(linear)
    }

    /// With activations rounded as was asked for, or as the publisher of all `parts` rounds them; an expert's never are.
    fn with_activations(&self, linear: Linear, parts: &[(&str, usize)]) -> candle_core::Result<Linear> {
        if self.is_of_expert() {
            return Ok(linear);
        }
        let quantization = match &self.loader.source {
            Source::Checkpoint(stored) => stored.quantization(),
            Source::Dummy(dummy) | Source::Sizes(dummy) => dummy.quantization(),
        };
        let published = |(name, _): &(&str, usize)| quantization.rounds_activations(&format!("{}{name}", self.prefix));
        let rounds = self.loader.fp8_activations.unwrap_or_else(|| parts.iter().all(published));
        if rounds { linear.with_fp8_activations() } else { Ok(linear) }
    }

    /// The rows of the matrix `name`, in the form that it is stored in or that is asked for.
    fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix<'a>, CheckpointError> {
        let module = format!("{}{name}", self.prefix);
        let mut matrix = match &self.loader.source {
            Source::Checkpoint(stored) => {
                let matrix = stored.find(&module, rows, cols)?.read()?;
                matrix.brought_to(self.wanted_format(&module, cols), [rows, cols], &self.stored_name(name))?
            }
            Source::Dummy(dummy) | Source::Sizes(dummy) => {
                let format = self.made_format(name, cols).unwrap_or(dummy.ty().into());
                let bytes = dummy.matrix(&self.full_name(name), [rows, cols], format);
                let bytes = bytes.map_err(|e| CheckpointError::tensor(&module, e))?;
                Matrix { format, stored_bytes: bytes.len() as u64, bytes: bytes.into(), order: None }
            }
        };
        self.unpair(name, rows, &mut matrix.bytes)?;
        Ok(matrix)
    }

    /// What a made-up matrix is made of, if not of plain numbers.
    fn made_format(&self, name: &str, cols: usize) -> Option<RowFormat> {
        let module = format!("{}{name}", self.prefix);
        let (Source::Dummy(dummy) | Source::Sizes(dummy)) = &self.loader.source else { return None };
        dummy.quantization().dummy_format(&module, cols).or_else(|| self.wanted_format(&module, cols))
    }

    /// What a matrix that is there in full is to become.
    fn wanted_format(&self, module: &str, cols: usize) -> Option<RowFormat> {
        self.loader.quantize.filter(|_| !is_kept(module))?.format(cols)
    }

    /// See [`Weights::with_paired_heads`].
    fn unpair(&self, name: &str, rows: usize, bytes: &mut Cow<'_, [u8]>) -> Result<(), CheckpointError> {
        let Some(head_dim) = self.paired_heads.filter(|_| matches!(name, "q_proj" | "k_proj")) else { return Ok(()) };
        let unpaired = unpaired_rows(bytes, rows, rows / head_dim);
        let problem = format!("its {rows} rows do not divide into heads of {head_dim}");
        *bytes = Cow::Owned(unpaired.ok_or_else(|| CheckpointError::tensor(&self.full_name(name), problem))?);
        Ok(())
    }

    /// A token embedding, `[vocab, hidden]`, whose rows are gathered; a tied head is a clone of it.
    ///
    /// # Errors
    /// As [`Weights::linear`].
    pub fn embedding(&self, name: &str, vocab: usize, hidden: usize) -> Result<Linear, CheckpointError> {
        self.load_linear(&[(name, vocab)], hidden, None, Form::Widened)
    }

    /// A vector that is a module's own, `[len]`, f32: named as it is, without `.weight`.
    ///
    /// # Errors
    /// The tensor is missing or not of that length.
    pub fn parameter(&self, name: &str, len: usize) -> Result<Tensor, CheckpointError> {
        let full_name = format!("{}{name}", self.prefix);
        let values = self.numbers(&full_name, &[len], Role::Bias)?;
        self.to_device(values, &full_name)
    }

    /// A norm's weights `w`, `[len]`, f32, to be multiplied with.
    ///
    /// # Errors
    /// The tensor is missing or not of that length.
    pub fn norm(&self, name: &str, len: usize) -> Result<Tensor, CheckpointError> {
        self.vector(name, len, Role::Norm, 0.0)
    }

    /// What a norm without weights multiplies with: ones, `[len]`, f32.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn unit_norm(&self, len: usize) -> Result<Tensor, CheckpointError> {
        self.to_device(vec![1f32; if self.is_dry() { 0 } else { len }], "(none)")
    }

    /// As [`Weights::norm`], of a norm whose published weights are stored around zero, to be used as `1 + w`: gives
    /// `1 + w`, also where a conversion has added the one already.
    ///
    /// # Errors
    /// As [`Weights::norm`].
    pub fn zero_centred_norm(&self, name: &str, len: usize) -> Result<Tensor, CheckpointError> {
        let offset = if self.loader.source.has_folded_norms() { 0.0 } else { 1.0 };
        self.vector(name, len, Role::ZeroCentredNorm, offset)
    }

    /// Sets a tensor aside: the checkpoint may have it, the model does not need it.
    pub fn ignore(&self, name: &str) {
        if let Source::Checkpoint(stored) = &self.loader.source {
            stored.ignore(&self.full_name(name));
        }
    }

    /// As [`Weights::ignore`], of all tensors under this view's prefix: a part of the model that is not served.
    pub fn ignore_all(&self) {
        if let Source::Checkpoint(stored) = &self.loader.source {
            let bytes = stored.ignore_all(&self.prefix);
            if !self.is_survey() {
                self.report(bytes);
            }
        }
    }

    /// To be called when the model is complete: tensors that nothing asked for would silently change the model.
    ///
    /// # Errors
    /// There are such tensors.
    pub fn finish(&self) -> Result<(), CheckpointError> {
        match &self.loader.source {
            Source::Checkpoint(stored) => stored.finish(),
            Source::Dummy(_) | Source::Sizes(_) => Ok(()),
        }
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}{name}.weight", self.prefix)
    }

    /// As the checkpoint calls it.
    fn stored_name(&self, name: &str) -> String {
        self.loader.source.stored_name(&self.full_name(name))
    }

    fn fetch(&self, name: &str, shape: &[usize], role: Role) -> Result<StoredTensor<'a>, CheckpointError> {
        self.loader.source.tensor(&self.full_name(name), shape, role)
    }

    fn vector(&self, name: &str, len: usize, role: Role, offset: f32) -> Result<Tensor, CheckpointError> {
        let mut values = self.numbers(&self.full_name(name), &[len], role)?;
        values.iter_mut().for_each(|value| *value += offset);
        self.to_device(values, &self.full_name(name))
    }

    /// A vector of these numbers.
    fn to_device(&self, values: Vec<f32>, full_name: &str) -> Result<Tensor, CheckpointError> {
        let len = values.len();
        Tensor::from_vec(values, len, &self.loader.placement.device())
            .map_err(|e| CheckpointError::tensor(full_name, e))
    }

    /// The numbers of a small tensor, row by row. In a dry run there may be none: its length is only a config's claim.
    fn numbers(&self, full_name: &str, shape: &[usize], role: Role) -> Result<Vec<f32>, CheckpointError> {
        if let Source::Sizes(dummy) = &self.loader.source {
            self.report(self.loader.footprint.of_numbers(dummy.bytes(shape), shape));
            return Ok(Vec::new());
        }
        self.note_asked(full_name);
        self.or_note(self.read_numbers(full_name, shape, role), || Ok(Vec::new()))
    }

    fn read_numbers(&self, full_name: &str, shape: &[usize], role: Role) -> Result<Vec<f32>, CheckpointError> {
        let stored = self.loader.source.tensor(full_name, shape, role)?;
        if self.loader.source.has_headers_alone() {
            self.report(self.loader.footprint.of_numbers(stored.bytes.len() as u64, shape));
            return Ok(Vec::new());
        }
        let mut values = vec![0.0; shape.iter().product()];
        dequantize_row(stored.ty, &stored.bytes, &mut values).map_err(|e| CheckpointError::tensor(full_name, e))?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("element {at} is {}: the file is corrupt", values[at]);
            return Err(CheckpointError::tensor(full_name, problem));
        }
        self.report(self.loader.footprint.of_numbers(stored.bytes.len() as u64, shape));
        Ok(values)
    }

    /// Made where it is used, in no time: where they are plain, the numbers that the CPU would make; else as large.
    fn dummy_on_gpu(
        &self,
        dummy: &Dummy,
        parts: &[(&str, usize)],
        in_features: usize,
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Result<Linear, CheckpointError> {
        let seeds: Vec<_> = parts.iter().map(|(name, rows)| (*rows, dummy.seed_of(&self.full_name(name)))).collect();
        let deviation = source::matrix_deviation(parts[0].0, in_features, dummy.has_experts());
        let shape = [seeds.iter().map(|(rows, _)| rows).sum(), in_features];
        let packed = match self.made_format(parts[0].0, in_features) {
            Some(format) => Linear::dummy_quantized(format, shape, seeds[0].1, deviation, device),
            None => Ok(None),
        };
        let made = packed.and_then(|packed| match packed {
            Some(linear) => Ok(linear),
            None => Linear::dummy(&seeds, in_features, deviation, device),
        });
        let linear = made.and_then(|linear| match bias {
            Some(bias) => linear.with_bias(bias),
            None => Ok(linear),
        });
        let linear = linear.and_then(|linear| self.with_activations(linear, parts));
        let linear = linear.map_err(|e| CheckpointError::tensor(&self.full_name(parts[0].0), e))?;
        self.report(linear.packed_bytes() as u64);
        Ok(linear)
    }

    /// Whether nothing is loaded.
    fn is_dry(&self) -> bool {
        self.is_survey() || matches!(self.loader.source, Source::Sizes(_))
    }

    /// A matrix of one number, in place of one that a dry run only counts.
    fn stand_in(&self) -> Result<Linear, CheckpointError> {
        let source = RowSource::new(GgmlType::F32, 1, 1, &[0; 4]);
        Linear::pack(&[source], None, Activations::F32).map_err(|e| CheckpointError::tensor("(none)", e))
    }

    fn report(&self, bytes: u64) {
        let loader = &self.loader;
        loader.loaded.set(loader.loaded.get().saturating_add(bytes));
        (loader.progress)(loader.loaded.get());
    }
}
