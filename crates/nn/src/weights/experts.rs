//! A layer's experts, in whichever form a checkpoint has them:
//!
//! - modules: `0.gate_proj`, `0.up_proj`, `0.down_proj`, `1.gate_proj`, ..., linear layers in any format. Made-up weights
//!   have this form too;
//! - stacks, as GGUF files have them: `gate_proj`, `up_proj` and `down_proj`, each `[experts, out_features, in_features]`;
//! - fused: `gate_up_proj` and `down_proj` ([`fused`]);
//! - lists: `gate_up.0`, `gate_up.1`, ..., `down.0`, ... ([`listed`]).
//!
//! Kernels for experts on a GPU take a layer's in one form, with columns in order; where they are not stored so, all of them are
//! widened.

mod fused;
mod listed;

use std::borrow::Cow;
use std::sync::OnceLock;

use plimsoll_ops::linear::{Linear, Placement, RowSource};
use plimsoll_ops::moe::{Activation, Expert, Experts};
use plimsoll_ops::par::parallel_for;
use plimsoll_ops::quant::{GgmlType, RowFormat};

use super::loading::Form;
use super::packed::{Matrix, blame, brought_format};
use super::source::{Role, Source};
use super::{Footprint, Weights};
use crate::CheckpointError;
use crate::checkpoint::StoredTensor;

/// The matrices that are stacked.
const STACKS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// A layer's experts as its model has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsShape {
    pub experts: usize,
    pub hidden: usize,
    /// Of one expert.
    pub intermediate: usize,
    /// Each projection has a bias.
    pub has_biases: bool,
    /// Where the gate and up are one matrix, their features alternate; else the gate's come first.
    pub alternating: bool,
}

impl Weights<'_> {
    /// The experts under this view's prefix.
    ///
    /// # Errors
    /// A tensor is missing, of another shape or dtype, or has a scale that is not a number.
    pub fn experts(&self, shape: ExpertsShape, activation: Activation) -> Result<Experts, CheckpointError> {
        let error = |problem: String| CheckpointError::tensor(&format!("{}gate_up_proj", self.prefix), problem);
        let experts = self.or_note(self.stored_experts(&shape), || Ok(Vec::new()))?;
        // A dry run has none, or such as cannot compute.
        let experts = if self.is_dry() { vec![self.stand_in_expert()?] } else { experts };
        Experts::new(experts, activation).map_err(|e| error(e.to_string()))
    }

    fn stored_experts(&self, shape: &ExpertsShape) -> Result<Vec<Expert>, CheckpointError> {
        match &self.loader.source {
            Source::Checkpoint(stored) if STACKS.iter().any(|name| stored.holds(&self.full_name(name))) => {
                self.stacked(shape)
            }
            Source::Checkpoint(_) => match self.lists() {
                Some(names) => self.listed(names, shape),
                None if self.has("gate_up_proj") || self.has("down_proj") => self.fused(shape),
                None => self.modules(shape),
            },
            Source::Dummy(_) | Source::Sizes(_) => self.modules(shape),
        }
    }

    /// What scores `experts` experts for a token of `hidden` features: a linear layer, never quantized on loading
    /// and on a GPU never packed.
    ///
    /// # Errors
    /// As [`Weights::linear`] or [`Weights::linear_with_bias`].
    pub fn router(&self, name: &str, [experts, hidden]: [usize; 2], has_bias: bool) -> Result<Linear, CheckpointError> {
        let parts = [(name, experts)];
        let bias = has_bias.then(|| self.joint_bias(&parts)).transpose()?;
        self.load_linear(&parts, hidden, bias, Form::Widened)
    }

    fn modules(&self, shape: &ExpertsShape) -> Result<Vec<Expert>, CheckpointError> {
        let &ExpertsShape { experts, hidden, intermediate, has_biases, .. } = shape;
        let gate_up = [("gate_proj", intermediate), ("up_proj", intermediate)];
        let down = [("down_proj", hidden)];
        let form = |parts: &[(&str, usize)], cols| {
            let modules =
                (0..experts).flat_map(|index| parts.iter().map(move |(name, rows)| (format!("{index}.{name}"), *rows)));
            self.form_of_experts(modules, cols)
        };
        let (gate_up_form, down_form) = (form(&gate_up, hidden), form(&down, intermediate));
        let expert = |index: usize| {
            let weights = self.pp(index);
            Ok(Expert {
                gate_up: weights.projections(&gate_up, hidden, has_biases, gate_up_form)?,
                down: weights.projections(&down, intermediate, has_biases, down_form)?,
            })
        };
        (0..experts).map(expert).collect()
    }

    /// What all experts' matrices of these modules and rows become: as they are stored if they all are alike, else widened.
    /// Nothing is looked at for a CPU, which takes any.
    fn form_of_experts(&self, modules: impl IntoIterator<Item = (String, usize)>, cols: usize) -> Form {
        let is_for_gpu = matches!(self.loader.placement, Placement::Gpu(_)) || self.loader.footprint == Footprint::Gpu;
        let Source::Checkpoint(stored) = &self.loader.source else { return Form::Alike };
        if !is_for_gpu {
            return Form::Alike;
        }
        let mut formats = modules.into_iter().filter_map(|(name, rows)| {
            let module = format!("{}{name}", self.prefix);
            let (format, in_order) = stored.format(&module, rows, cols)?;
            Some(in_order.then(|| self.brought(&module, format, cols)))
        });
        let Some(first) = formats.next() else { return Form::Alike };
        let are_alike = first.is_some() && formats.all(|format| format == first);
        if are_alike { Form::Alike } else { Form::Widened }
    }

    fn projections(
        &self,
        parts: &[(&str, usize)],
        in_features: usize,
        has_biases: bool,
        form: Form,
    ) -> Result<Linear, CheckpointError> {
        let bias = has_biases.then(|| self.joint_bias(parts)).transpose()?;
        self.load_linear(parts, in_features, bias, form)
    }

    fn stacked(&self, shape: &ExpertsShape) -> Result<Vec<Expert>, CheckpointError> {
        let &ExpertsShape { experts, hidden, intermediate, .. } = shape;
        if self.is_survey() {
            return self.survey_stacks(shape);
        }
        let gate = self.stack("gate_proj", intermediate, hidden, shape)?;
        let up = self.stack("up_proj", intermediate, hidden, shape)?;
        let down = self.stack("down_proj", hidden, intermediate, shape)?;
        let gate_up = self.pack(experts, |index, placement| {
            let bias = gate.bias(index).map(|bias| [bias, up.bias(index).unwrap_or_default()].concat());
            let (names, matrices) = ([gate.name(index), up.name(index)], [gate.matrix(index)?, up.matrix(index)?]);
            let [first, second] = matrices.each_ref().map(|matrix| matrix.rows(intermediate, hidden));
            load_expert([(&names[0], first), (&names[1], second)], bias, placement)
        })?;
        let down = self.pack(experts, |index, placement| {
            let bias = down.bias(index).map(<[f32]>::to_vec);
            load_expert([(&down.name(index), down.matrix(index)?.rows(hidden, intermediate))], bias, placement)
        })?;
        Ok(paired(gate_up, down))
    }

    /// Looks at each stack, whatever is wrong with the others.
    fn survey_stacks(&self, shape: &ExpertsShape) -> Result<Vec<Expert>, CheckpointError> {
        let &ExpertsShape { experts, hidden, intermediate, .. } = shape;
        let sides = [(intermediate, hidden), (intermediate, hidden), (hidden, intermediate)];
        let mut found = Vec::new();
        for (name, (rows, cols)) in STACKS.into_iter().zip(sides) {
            let format = self.stack(name, rows, cols, shape).map(|stack| stack.loaded_format());
            found.push((self.or_note(format, || Ok(GgmlType::BF16.into()))?, rows));
        }
        self.count(&found[..2], hidden, experts, Form::Alike);
        self.count(&found[2..], intermediate, experts, Form::Alike);
        Ok(Vec::new())
    }

    fn stack(&self, name: &str, rows: usize, cols: usize, shape: &ExpertsShape) -> Result<Stack<'_>, CheckpointError> {
        self.note_asked(&self.full_name(name));
        let module = format!("{}{name}", self.prefix);
        let biases = self.biases(&format!("{module}.bias"), rows, shape)?;
        let stored = self.fetch(name, &[shape.experts, rows, cols], Role::Matrix)?;
        if !self.is_survey() {
            self.report(stored.bytes.len() as u64);
        }
        let (name, format) = (self.stored_name(name), self.wanted_format(&module, cols));
        Ok(Stack { name, stored, biases, rows, cols, format })
    }

    /// `[experts, rows]`, where there are any.
    fn biases(&self, full_name: &str, rows: usize, shape: &ExpertsShape) -> Result<Option<Vec<f32>>, CheckpointError> {
        let biases = || self.numbers(full_name, &[shape.experts, rows], Role::Bias);
        shape.has_biases.then(biases).transpose()
    }

    /// Packs a matrix of every expert, on a CPU several at a time.
    fn pack(
        &self,
        experts: usize,
        load: impl Fn(usize, &Placement) -> Result<Linear, CheckpointError> + Sync,
    ) -> Result<Vec<Linear>, CheckpointError> {
        let placement = &self.loader.placement;
        if let Placement::Gpu(_) = placement {
            return (0..experts).map(|index| load(index, placement)).collect();
        }
        let packed: Vec<OnceLock<_>> = (0..experts).map(|_| OnceLock::new()).collect();
        parallel_for(experts, |index| {
            packed[index].get_or_init(|| load(index, placement));
        });
        packed.into_iter().map(|cell| cell.into_inner().expect("every expert was packed")).collect()
    }

    /// In place of experts that a dry run only counts.
    fn stand_in_expert(&self) -> Result<Expert, CheckpointError> {
        let zeros = |rows: usize| {
            let source = RowSource::new(GgmlType::F32, rows, 1, &[0; 8][..4 * rows]);
            Linear::load(&[source], None, &self.loader.placement)
        };
        let expert = zeros(2).and_then(|gate_up| Ok(Expert { gate_up, down: zeros(1)? }));
        expert.map_err(|e| CheckpointError::tensor("(none)", e))
    }
}

fn paired(gate_up: Vec<Linear>, down: Vec<Linear>) -> Vec<Expert> {
    gate_up.into_iter().zip(down).map(|(gate_up, down)| Expert { gate_up, down }).collect()
}

/// One layer of one expert, of the rows of these tensors.
fn load_expert<const N: usize>(
    parts: [(&str, RowSource<'_>); N],
    bias: Option<Vec<f32>>,
    placement: &Placement,
) -> Result<Linear, CheckpointError> {
    Linear::load_alike(&parts.map(|(_, source)| source), bias, placement).map_err(|error| blame(parts, error))
}

/// A tensor's part that is one expert's, as messages name it.
fn part_of(tensor: &str, expert: usize) -> String {
    format!("{tensor}, expert {expert}")
}

/// A matrix of every expert, `[experts, rows, cols]`.
struct Stack<'a> {
    /// As the checkpoint calls it.
    name: String,
    stored: StoredTensor<'a>,
    /// `[experts, rows]`
    biases: Option<Vec<f32>>,
    rows: usize,
    cols: usize,
    /// What they are to become.
    format: Option<RowFormat>,
}

impl Stack<'_> {
    fn loaded_format(&self) -> RowFormat {
        brought_format(self.stored.ty.into(), self.format)
    }

    fn name(&self, expert: usize) -> String {
        part_of(&self.name, expert)
    }

    fn matrix(&self, expert: usize) -> Result<Matrix<'_>, CheckpointError> {
        let size = self.stored.bytes.len() / self.stored.shape[0];
        let bytes = Cow::from(&self.stored.bytes[expert * size..][..size]);
        let matrix = Matrix { format: self.stored.ty.into(), bytes, order: None, stored_bytes: size as u64 };
        matrix.brought_to(self.format, [self.rows, self.cols], &self.name(expert))
    }

    fn bias(&self, expert: usize) -> Option<&[f32]> {
        self.biases.as_ref().map(|biases| &biases[expert * self.rows..][..self.rows])
    }
}
