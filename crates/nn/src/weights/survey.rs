//! Loading without loading: every tensor that a model asks for is looked up as loading would ([`super::packed::Found`]), and
//! its type, its shape and its scales are checked, but no matrix is read; and what is wrong is collected, so that all of it
//! can be told at once.
//!
//! What a survey finds is what loading would refuse, in the same words; but that a matrix's own numbers are some
//! ([`CheckpointError::Row`]) is found out by loading alone.

use std::cell::RefCell;
use std::rc::Rc;

use plimsoll_ops::linear::{Activations, Linear};
use plimsoll_ops::quant::{GgmlType, RowFormat};

use super::packed::{Found, brought_format};
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
        let mut formats = Vec::new();
        for &(name, rows) in parts {
            let module = format!("{}{name}", self.prefix);
            let found =
                stored.find(&module, rows, in_features).map(|found| self.format_of(&module, &found, in_features));
            let format = self.or_note(found, || {
                // Who has a problem was asked for, and is not among the unused.
                stored.ignore_all(&format!("{module}."));
                Ok(GgmlType::BF16.into())
            })?;
            formats.push((format, rows));
        }
        self.count(&formats, in_features, 1);
        self.stand_in()
    }

    /// What a matrix is computed with in. On a GPU, whose kernels for experts know no other order of columns, an expert's that
    /// has its own is widened.
    fn format_of(&self, module: &str, found: &Found<'_>, in_features: usize) -> RowFormat {
        match (self.loader.footprint, &found.order) {
            (Footprint::Gpu, Some(_)) if self.is_of_expert() => GgmlType::BF16.into(),
            _ => brought_format(found.format, self.wanted_format(module, in_features)),
        }
    }

    /// In a survey, counts a tensor as used, whatever is found to be wrong with it.
    pub(super) fn note_asked(&self, full_name: &str) {
        if let (Source::Checkpoint(stored), true) = (&self.loader.source, self.is_survey()) {
            stored.note(full_name);
        }
    }

    /// Counts so many merged matrices, of parts of these formats and rows, that are not loaded.
    pub(super) fn count(&self, parts: &[(RowFormat, usize)], cols: usize, copies: usize) {
        let footprint = self.loader.footprint;
        let one = if self.is_of_expert() { Footprint::of_expert } else { Footprint::of_matrices };
        self.report(one(footprint, parts, cols).saturating_mul(copies as u64));
    }

    fn is_of_expert(&self) -> bool {
        self.prefix.contains(".experts.")
    }
}
