//! Loading without loading: every tensor that a model asks for is looked up, and its type and shape are checked, but no
//! matrix is read; and what is wrong is collected, so that all of it can be told at once.
//!
//! A matrix's type and shape decide whether it would load; that its numbers are sane is found out by loading alone.

use std::cell::RefCell;
use std::rc::Rc;

use plimsoll_ops::linear::{Activations, Linear};
use plimsoll_ops::quant::{GgmlType, RowFormat};
use safetensors::Dtype;

use super::packed::brought_format;
use super::source::Stored;
use super::{Footprint, Loading, Quantize, Source, Weights};
use crate::CheckpointError;
use crate::checkpoint::{Checkpoint, RawTensor};
use crate::quantization::{Method, Quantization};

/// Who has seen so many problems needs no more of them: a config may ask for millions of tensors that are not there.
const MOST_PROBLEMS: usize = 1000;

/// What was found to be wrong so far.
#[derive(Default)]
pub(super) struct Survey {
    problems: RefCell<Vec<CheckpointError>>,
}

impl<'a> Weights<'a> {
    /// Of a checkpoint that is only looked at: a model that is built of this cannot compute. What is wrong with its
    /// tensors is no error of the doors, but among [`Weights::problems`], up to a number of them. What was asked for is
    /// counted ([`Weights::loaded_bytes`]) as `footprint` says, with matrices brought to the form that `quantize` names.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn survey(
        checkpoint: &'a Checkpoint,
        quantize: Option<Quantize>,
        footprint: Footprint,
    ) -> Result<Self, CheckpointError> {
        let source = Source::Checkpoint(Stored::new(checkpoint, Quantization::parse(checkpoint.config())?));
        let loading = Loading { quantize, ..Activations::F32.into() };
        let mut weights = Self::of(source, loading, Box::new(|_| ()));
        let loader = Rc::get_mut(&mut weights.loader).expect("nobody else has it yet");
        loader.survey = Some(Survey::default());
        loader.footprint = footprint;
        Ok(weights)
    }

    /// What a survey found so far: tensors that are missing, misshapen or of types that are not served. They are given
    /// once.
    pub fn problems(&self) -> Vec<CheckpointError> {
        self.loader.survey.as_ref().map(|survey| survey.problems.take()).unwrap_or_default()
    }

    pub(super) fn is_survey(&self) -> bool {
        self.loader.survey.is_some()
    }

    /// In a survey, notes an error and goes on with `stand_in`.
    pub(super) fn or_note<T>(
        &self,
        outcome: Result<T, CheckpointError>,
        stand_in: impl FnOnce() -> Result<T, CheckpointError>,
    ) -> Result<T, CheckpointError> {
        match (&self.loader.survey, outcome) {
            (Some(survey), Err(problem)) => {
                let mut problems = survey.problems.borrow_mut();
                if problems.len() == MOST_PROBLEMS {
                    return Err(problem);
                }
                problems.push(problem);
                stand_in()
            }
            (_, outcome) => outcome,
        }
    }

    /// As loading linear layers would, but that the matrices are not read.
    pub(super) fn survey_linear(
        &self,
        stored: &Stored<'_>,
        parts: &[(&str, usize)],
        in_features: usize,
    ) -> Result<Linear, CheckpointError> {
        let mut found = Vec::new();
        for &(name, rows) in parts {
            let module = format!("{}{name}", self.prefix);
            let stored = stored.survey_matrix(&module, rows, in_features, self.loader.footprint);
            let format = self.or_note(stored, || Ok(GgmlType::BF16.into()))?;
            found.push((brought_format(format, self.wanted_format(&module, in_features)), rows));
        }
        self.count(&found, in_features, 1);
        self.stand_in()
    }

    /// In a survey, counts a tensor as used, whatever is found to be wrong with it.
    pub(super) fn note_asked(&self, full_name: &str) {
        if let (Source::Checkpoint(stored), true) = (&self.loader.source, self.is_survey()) {
            stored.note(full_name);
        }
    }

    /// Counts so many merged matrices, of parts of these formats and rows, that are not loaded.
    pub(super) fn count(&self, parts: &[(RowFormat, usize)], cols: usize, copies: usize) {
        self.report(self.loader.footprint.of_matrices(parts, cols).saturating_mul(copies as u64));
    }
}

impl Stored<'_> {
    /// What `module`'s matrix would be loaded as, in whichever form it is stored; its tensors are noted as used.
    fn survey_matrix(
        &self,
        module: &str,
        rows: usize,
        cols: usize,
        footprint: Footprint,
    ) -> Result<RowFormat, CheckpointError> {
        let plain = format!("{module}.weight");
        let is_widened = footprint == Footprint::Gpu && self.quantization().is_reordered();
        let packed = self.quantization().dummy_format(module, cols).filter(|_| !is_widened);
        let packed = packed.unwrap_or(GgmlType::BF16.into());
        match self.quantization().method() {
            Method::Plain | Method::Mxfp4 => {}
            Method::Gptq(_) | Method::Awq { .. } => {
                if let Some(codes) = self.raw(&format!("{module}.qweight"))? {
                    self.survey_companions(module, &["qweight", "qzeros", "scales"], &["g_idx", "bias"])?;
                    return check_words(&format!("{module}.qweight"), &codes, [cols, rows]).map(|()| packed);
                }
            }
            Method::Fp8(_) | Method::Compressed(_) => {
                const MORE: [&str; 3] = ["weight_shape", "weight_zero_point", "weight_g_idx"];
                if let Some(codes) = self.raw(&format!("{module}.weight_packed"))? {
                    self.survey_companions(module, &["weight_packed", "weight_scale"], &MORE)?;
                    return check_words(&format!("{module}.weight_packed"), &codes, [cols, rows]).map(|()| packed);
                }
                if let Some(codes) = self.raw(&plain)?.filter(|codes| is_code(codes.dtype)) {
                    let inverse = self.raw(&format!("{module}.weight_scale_inv"))?.is_some();
                    let scale = if inverse { "weight_scale_inv" } else { "weight_scale" };
                    self.survey_companions(module, &["weight", scale], &MORE)?;
                    return check_shape(&plain, codes.shape, &[rows, cols]).map(|()| packed);
                }
            }
        }
        self.check(&plain, &[rows, cols]).map(RowFormat::from)
    }

    /// Notes a module's tensors as used.
    fn survey_companions(&self, module: &str, needed: &[&str], possible: &[&str]) -> Result<(), CheckpointError> {
        for (tensor, is_needed) in needed.iter().map(|t| (t, true)).chain(possible.iter().map(|t| (t, false))) {
            let name = format!("{module}.{tensor}");
            match self.raw(&name)? {
                Some(_) => self.note(&name),
                None if is_needed => return Err(CheckpointError::MissingTensor { name }),
                None => {}
            }
        }
        Ok(())
    }
}

fn is_code(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::I8)
}

/// Whether words hold as many codes of 4 or 8 bits as the matrix has elements, along one of its sides.
fn check_words(name: &str, words: &RawTensor<'_>, sides: [usize; 2]) -> Result<(), CheckpointError> {
    if words.dtype != Dtype::I32 {
        return Err(CheckpointError::tensor(name, format!("has dtype {:?}; it must be I32", words.dtype)));
    }
    let mut wanted = sides;
    wanted.sort_unstable();
    let holds = |a_word: usize| {
        let along = |side: usize| -> Option<[usize; 2]> {
            let mut unpacked = <[usize; 2]>::try_from(words.shape).ok()?;
            unpacked[side] = unpacked[side].checked_mul(a_word)?;
            unpacked.sort_unstable();
            Some(unpacked)
        };
        along(0) == Some(wanted) || along(1) == Some(wanted)
    };
    if holds(8) || holds(4) {
        return Ok(());
    }
    let [cols, rows] = sides;
    let problem = format!("of shape {:?} is not [{rows}, {cols}] in codes of 4 or 8 bits", words.shape);
    Err(CheckpointError::tensor(name, problem))
}

fn check_shape(name: &str, found: &[usize], expected: &[usize]) -> Result<(), CheckpointError> {
    if found == expected {
        return Ok(());
    }
    Err(CheckpointError::Shape { name: name.into(), expected: expected.to_vec(), found: found.to_vec() })
}
