//! Experts of which each is two modules in two lists, `gate_up.0`, `gate_up.1`, ..., and `down.0`, ... (at first
//! `gate_up_projs` and `down_projs`): what GPTQModel makes of gpt-oss's. In a `gate_up` the gate's and up's features are in
//! the order of a fused one ([`super::fused`]).

use plimsoll_ops::linear::Linear;
use plimsoll_ops::moe::Expert;

use super::super::Weights;
use super::super::loading::Form;
use super::super::packed::{Matrix, blame};
use super::super::source::Source;
use super::ExpertsShape;
use super::fused::Fused;
use crate::CheckpointError;

/// What the two lists are called.
type Names = [&'static str; 2];

const NAMES: [Names; 2] = [["gate_up", "down"], ["gate_up_projs", "down_projs"]];

impl Weights<'_> {
    /// What the lists are called that the checkpoint has.
    pub(super) fn lists(&self) -> Option<Names> {
        NAMES.into_iter().find(|names| names.iter().any(|name| self.has(&format!("{name}."))))
    }

    pub(super) fn listed(
        &self,
        [gate_up_name, down_name]: Names,
        shape: &ExpertsShape,
    ) -> Result<Vec<Expert>, CheckpointError> {
        let (gate_up, down) = Fused::both(shape);
        let form = |name: &str, fused: &Fused| {
            let modules = (0..shape.experts).map(|index| (format!("{name}.{index}"), fused.rows));
            self.form_of_experts(modules, fused.cols)
        };
        let (gate_up_form, down_form) = (form(gate_up_name, &gate_up), form(down_name, &down));
        let expert = |index: usize| {
            let matrix = |name: &str, fused: &Fused, form: Form| {
                self.listed_matrix(&format!("{name}.{index}"), fused, shape.has_biases, form)
            };
            Ok(Expert {
                gate_up: matrix(gate_up_name, &gate_up, gate_up_form)?,
                down: matrix(down_name, &down, down_form)?,
            })
        };
        (0..shape.experts).map(expert).collect()
    }

    fn listed_matrix(&self, name: &str, fused: &Fused, has_bias: bool, form: Form) -> Result<Linear, CheckpointError> {
        let &Fused { rows, cols, .. } = fused;
        let parts = [(name, rows)];
        let bias = has_bias.then(|| self.joint_bias(&parts)).transpose()?;
        if let (Source::Checkpoint(stored), true) = (&self.loader.source, self.is_survey()) {
            return self.survey_linear(stored, &parts, cols, form);
        }
        let matrix = self.matrix(name, rows, cols)?;
        let row_bytes = matrix.bytes.len() / rows;
        let stored_rows = (0..rows).map(|row| fused.stored_row(row));
        let bytes = stored_rows.clone().flat_map(|row| &matrix.bytes[row * row_bytes..][..row_bytes]).copied();
        let ordered = Matrix { bytes: bytes.collect(), ..matrix };
        let bias = bias.map(|bias| stored_rows.map(|row| bias[row]).collect());
        let source = ordered.rows(rows, cols);
        let linear = form.load(&[source], bias, &self.loader.placement);
        self.report(ordered.stored_bytes);
        linear.map_err(|error| blame([(&*self.stored_name(name), source)], error))
    }
}
