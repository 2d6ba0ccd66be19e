//! Loading without loading: every tensor that a model asks for is looked up as loading would ([`Stored::find`]), and
//! its type, its shape and its scales are checked, but no matrix is read; and what is wrong is collected, so that all of it
//! can be told at once.
//!
//! What a survey finds is what loading would refuse, in the same words; but that a matrix's own numbers are some
//! ([`CheckpointError::Row`]) is found out by loading alone.

use std::cell::RefCell;
use std::rc::Rc;

use plimsoll_ops::linear::{Activations, Linear};
use plimsoll_ops::quant::{GgmlType, RowFormat};

use super::loading::Form;
use super::packed::brought_format;
use super::source::Stored;
use super::{Footprint, Loading, Quantize, Source, Weights};
use crate::CheckpointError;
use crate::checkpoint::Checkpoint;
use crate::quantization::Quantization;

/// Who has seen so many problems needs no more of them: a config may ask for millions of tensors that are not there.
const MOST_PROBLEMS: usize = 1000;

/// What was found to be wrong so far.
#[derive(Default)]
pub(super) struct Survey {
    problems: RefCell<Vec<CheckpointError>>,
}

impl<'a> Weights<'a> {
    /// Of a checkpoint that is only looked at: a model that is built of this cannot compute. What is wrong with its
    /// tensors is no error of the doors, but among [`Weights::problems`], up to a number of them.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn survey(checkpoint: &'a Checkpoint) -> Result<Self, CheckpointError> {
        let stored = Stored::new(checkpoint, Quantization::parse(checkpoint.config())?);
        Ok(Self::only_looked_at(stored, None, Footprint::Stored))
    }

    /// As [`Weights::survey`], but that no numbers are looked at, of scales or norms either: what was asked for is counted
    /// ([`Weights::loaded_bytes`]) as `footprint` says, with matrices brought to the form that `quantize` names.
    ///
    /// # Errors
    /// As [`Weights::new`].
    pub fn sizes_of(
        checkpoint: &'a Checkpoint,
        quantize: Option<Quantize>,
        footprint: Footprint,
    ) -> Result<Self, CheckpointError> {
        let stored = Stored::headers_of(checkpoint, Quantization::parse(checkpoint.config())?);
        Ok(Self::only_looked_at(stored, quantize, footprint))
    }

    fn only_looked_at(stored: Stored<'a>, quantize: Option<Quantize>, footprint: Footprint) -> Self {
        let loading = Loading { quantize, ..Activations::F32.into() };
        let mut weights = Self::of(Source::Checkpoint(stored), loading, Box::new(|_| ()));
        let loader = Rc::get_mut(&mut weights.loader).expect("nobody else has it yet");
        loader.survey = Some(Survey::default());
        loader.footprint = footprint;
        weights
    }

    /// What a survey found so far: tensors that are missing, misshapen, of types that are not served, or whose numbers (of
    /// norms, biases, scales) are none. They are given once.
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
        form: Form,
    ) -> Result<Linear, CheckpointError> {
        let mut formats = Vec::new();
        for &(name, rows) in parts {
            let module = format!("{}{name}", self.prefix);
            let found =
                stored.find(&module, rows, in_features).map(|found| self.brought(&module, found.format, in_features));
            let format = self.or_note(found, || {
                // Who has a problem was asked for, and is not among the unused.
                stored.note(&format!("{module}.weight"));
                stored.ignore_all(&format!("{module}."));
                Ok(GgmlType::BF16.into())
            })?;
            formats.push((format, rows));
        }
        self.count(&formats, in_features, 1, form);
        self.stand_in()
    }

    /// What becomes of a module's matrix of this format.
    pub(super) fn brought(&self, module: &str, format: RowFormat, in_features: usize) -> RowFormat {
        brought_format(format, self.wanted_format(module, in_features))
    }

    /// In a survey, counts a tensor as used, whatever is found to be wrong with it.
    pub(super) fn note_asked(&self, full_name: &str) {
        if let (Source::Checkpoint(stored), true) = (&self.loader.source, self.is_survey()) {
            stored.note(full_name);
        }
    }

    /// Counts so many merged matrices, of parts of these formats and rows, that are not loaded.
    pub(super) fn count(&self, parts: &[(RowFormat, usize)], cols: usize, copies: usize, form: Form) {
        let bytes = self.loader.footprint.of_matrices(parts, cols, form);
        self.report(bytes.saturating_mul(copies as u64));
    }

    pub(super) fn is_of_expert(&self) -> bool {
        self.prefix.contains(".experts.")
    }
}
