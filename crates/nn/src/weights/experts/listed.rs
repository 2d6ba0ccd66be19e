//! Experts of which each is two modules in two lists, `gate_up.0`, `gate_up.1`, ..., and `down.0`, ...: what GPTQModel made
//! of gpt-oss's at first. In a `gate_up` the gate's and up's features are in the order of a fused one ([`super::fused`]).

use plimsoll_ops::linear::Linear;
use plimsoll_ops::moe::Expert;

use super::super::Weights;
use super::super::packed::Matrix;
use super::super::source::Source;
use super::ExpertsShape;
use super::fused::Fused;
use crate::CheckpointError;

impl Weights<'_> {
    pub(super) fn listed(&self, shape: &ExpertsShape) -> Result<Vec<Expert>, CheckpointError> {
        let (gate_up, down) = Fused::both(shape);
        let expert = |index: usize| {
            Ok(Expert {
                gate_up: self.listed_matrix(&format!("gate_up.{index}"), &gate_up, shape.has_biases)?,
                down: self.listed_matrix(&format!("down.{index}"), &down, shape.has_biases)?,
            })
        };
        (0..shape.experts).map(expert).collect()
    }

    fn listed_matrix(&self, name: &str, fused: &Fused, has_bias: bool) -> Result<Linear, CheckpointError> {
        let &Fused { rows, cols, .. } = fused;
        let parts = [(name, rows)];
        let bias = has_bias.then(|| self.joint_bias(&parts)).transpose()?;
        if let (Source::Checkpoint(stored), true) = (&self.loader.source, self.is_survey()) {
            return self.survey_linear(stored, &parts, cols);
        }
        let matrix = self.matrix(name, rows, cols)?;
        let row_bytes = matrix.bytes.len() / rows;
        let stored_rows = (0..rows).map(|row| fused.stored_row(row));
        let bytes = stored_rows.clone().flat_map(|row| &matrix.bytes[row * row_bytes..][..row_bytes]).copied();
        let ordered = Matrix { bytes: bytes.collect(), ..matrix };
        let bias = bias.map(|bias| stored_rows.map(|row| bias[row]).collect());
        let linear = Linear::load_alike(&[ordered.rows(rows, cols)], bias, &self.loader.placement);
        self.report(ordered.stored_bytes);
        linear.map_err(|e| CheckpointError::tensor(&self.full_name(name), e))
    }
}
