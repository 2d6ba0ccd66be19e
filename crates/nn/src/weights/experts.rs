//! A layer's experts in the two forms in which gpt-oss is published: MXFP4 as blocks and scales, and dense.
//!
//! Either way one tensor holds a matrix of every expert, and the gate's and up's rows of a merged projection alternate.

use plimsoll_ops::linear::{Linear, Placement, RowSource};
use plimsoll_ops::moe::{Activation, Expert, Experts};
use plimsoll_ops::quant::GgmlType;

use super::Weights;
use super::source::{Role, Source};
use crate::CheckpointError;

/// Elements of a block of MXFP4, and the bytes they are packed in.
const BLOCK: usize = 32;
const BLOCK_BYTES: usize = BLOCK / 2;
/// The exponent that is not a number.
const NOT_A_NUMBER: u8 = 255;

/// The dimensions of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsShape {
    pub experts: usize,
    pub hidden: usize,
    pub intermediate: usize,
}

/// One matrix of every expert.
struct Stack {
    experts: usize,
    /// Output features.
    rows: usize,
    /// Input features.
    cols: usize,
    /// Even rows are the gate's, odd ones up's.
    interleaved: bool,
}

impl Stack {
    /// Where an output row is stored.
    fn stored_row(&self, row: usize) -> usize {
        match (self.interleaved, self.rows / 2) {
            (false, _) => row,
            (true, half) if row < half => 2 * row,
            (true, half) => 2 * (row - half) + 1,
        }
    }
}

impl Weights<'_> {
    /// Experts with biases: `gate_up_proj` and `down_proj`, each either `[experts, in_features, out_features]`, or
    /// `_blocks`, U8 `[experts, out_features, in_features / 32, 16]` with neighbours in a byte, and `_scales`, U8
    /// `[experts, out_features, in_features / 32]`; and their `_bias`, `[experts, out_features]`. On a CPU alone.
    ///
    /// # Errors
    /// A tensor is missing, of another shape or dtype, or has a scale that is not a number; or a GPU.
    pub fn experts(&self, shape: ExpertsShape, activation: Activation) -> Result<Experts, CheckpointError> {
        let error = |problem: String| CheckpointError::tensor(&format!("{}gate_up_proj", self.prefix), problem);
        if let Placement::Gpu(_) = self.loader.placement {
            return Err(error("mixtures of experts are not served on a GPU yet: choose the CPU".into()));
        }
        let ExpertsShape { experts, hidden, intermediate } = shape;
        let gate_up = Stack { experts, rows: 2 * intermediate, cols: hidden, interleaved: true };
        let down = Stack { experts, rows: hidden, cols: intermediate, interleaved: false };
        let (gate_up, down) = (self.stack("gate_up_proj", &gate_up)?, self.stack("down_proj", &down)?);
        if let Source::Sizes(_) = self.loader.source {
            return self.stand_in_experts(activation);
        }
        let experts = gate_up.into_iter().zip(down).map(|(gate_up, down)| Expert { gate_up, down });
        Experts::new(experts.collect(), activation).map_err(|e| error(e.to_string()))
    }

    /// One matrix, packed, of every expert; of none in a dry run.
    fn stack(&self, name: &str, stack: &Stack) -> Result<Vec<Linear>, CheckpointError> {
        let full_name = format!("{}{name}", self.prefix);
        let &Stack { experts, rows, cols, .. } = stack;
        let stored = self.numbers(&format!("{full_name}_bias"), &[experts, rows], Role::Bias)?;
        let biases = stored.chunks_exact(rows).map(|stored| (0..rows).map(|r| stored[stack.stored_row(r)]).collect());
        if let Source::Sizes(dummy) = &self.loader.source {
            self.report(dummy.bytes(&[experts, cols, rows]));
            return Ok(Vec::new());
        }
        let groups = cols / BLOCK;
        let blocks_name = format!("{full_name}_blocks");
        match self.loader.source.bytes(&blocks_name, &[experts, rows, groups, BLOCK_BYTES])? {
            Some(_) if cols % BLOCK != 0 => {
                let problem = format!("is of blocks of {BLOCK}, which do not divide {cols} input features");
                Err(CheckpointError::tensor(&blocks_name, problem))
            }
            Some(blocks) => {
                let scales = self.scales(&format!("{full_name}_scales"), &[experts, rows, groups])?;
                let stacked = blocks.chunks_exact(blocks.len() / experts).zip(scales.chunks_exact(rows * groups));
                let rows = stacked.map(|(blocks, scales)| mxfp4_rows(blocks, scales, stack));
                self.pack(&full_name, GgmlType::MXFP4, stack, rows.zip(biases))
            }
            None => {
                let stored = self.loader.source.tensor(&full_name, &[experts, cols, rows], Role::Matrix)?;
                if stored.ty.block_len() != 1 {
                    return Err(CheckpointError::tensor(&full_name, format!("{:?} cannot be turned", stored.ty)));
                }
                let stacked = stored.bytes.chunks_exact(stored.bytes.len() / experts);
                let rows = stacked.map(|matrix| turned_rows(matrix, stored.ty.block_bytes(), stack));
                self.pack(&full_name, stored.ty, stack, rows.zip(biases))
            }
        }
    }

    /// Packs each expert's rows and bias, one expert after the other.
    fn pack(
        &self,
        full_name: &str,
        ty: GgmlType,
        &Stack { rows, cols, .. }: &Stack,
        experts: impl Iterator<Item = (Vec<u8>, Vec<f32>)>,
    ) -> Result<Vec<Linear>, CheckpointError> {
        let pack = |(bytes, bias): (Vec<u8>, Vec<f32>)| {
            let source = RowSource::new(ty, rows, cols, &bytes);
            let packed = Linear::load(&[source], Some(bias), &self.loader.placement);
            self.report(bytes.len() as u64);
            packed.map_err(|e| CheckpointError::tensor(full_name, e))
        };
        experts.map(pack).collect()
    }

    fn scales(&self, name: &str, shape: &[usize]) -> Result<&[u8], CheckpointError> {
        match self.loader.source.bytes(name, shape)? {
            None => Err(CheckpointError::MissingTensor { name: name.into() }),
            Some(scales) if scales.contains(&NOT_A_NUMBER) => {
                Err(CheckpointError::tensor(name, "has a scale that is not a number: the file is corrupt"))
            }
            Some(scales) => Ok(scales),
        }
    }

    /// In place of experts that a dry run only counts.
    fn stand_in_experts(&self, activation: Activation) -> Result<Experts, CheckpointError> {
        let zeros = |rows: usize| {
            let source = RowSource::new(GgmlType::F32, rows, 1, &[0; 8][..4 * rows]);
            Linear::load(&[source], None, &self.loader.placement)
        };
        let expert = zeros(2).and_then(|gate_up| Ok(Expert { gate_up, down: zeros(1)? }));
        expert
            .and_then(|expert| Experts::new(vec![expert], activation))
            .map_err(|e| CheckpointError::tensor("(none)", e))
    }
}

/// The rows of a matrix as GGML has them: a block's scale, then its elements, the second half in the high nibbles.
fn mxfp4_rows(blocks: &[u8], scales: &[u8], stack: &Stack) -> Vec<u8> {
    let groups = stack.cols / BLOCK;
    let mut bytes = Vec::with_capacity(stack.rows * groups * (1 + BLOCK_BYTES));
    for row in 0..stack.rows {
        let first = stack.stored_row(row) * groups;
        for at in first..first + groups {
            let block = &blocks[at * BLOCK_BYTES..][..BLOCK_BYTES];
            let element = |index: usize| block[index / 2] >> (4 * (index % 2)) & 15;
            bytes.push(scales[at]);
            bytes.extend((0..BLOCK_BYTES).map(|index| element(index) | element(index + BLOCK_BYTES) << 4));
        }
    }
    bytes
}

/// The rows of a matrix of elements of `size` bytes that is stored by columns.
fn turned_rows(matrix: &[u8], size: usize, stack: &Stack) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(matrix.len());
    for row in 0..stack.rows {
        let row = stack.stored_row(row);
        for col in 0..stack.cols {
            bytes.extend_from_slice(&matrix[(col * stack.rows + row) * size..][..size]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use plimsoll_ops::quant::dequantize_row;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gpu_is_refused_by_name() {
        let config = json!({});
        let weights = Weights::dummy(&config, 0, Placement::Gpu(Device::Cpu), |_| {}).unwrap().pp("mlp.experts");
        let shape = ExpertsShape { experts: 2, hidden: 32, intermediate: 32 };
        let error = weights.experts(shape, Activation::SiluMul).unwrap_err().to_string();
        assert!(error.contains("mlp.experts.gate_up_proj") && error.contains("not served on a GPU yet"), "{error}");
        let error = weights.linear_with_bias(&[("router", 2)], 32).unwrap_err().to_string();
        assert!(error.contains("mlp.experts.router.bias") && error.contains("not served on a GPU yet"), "{error}");
    }

    #[test]
    fn blocks_come_out_in_their_order_with_the_gate_first() {
        // Two stored rows (the gate's, up's) of two blocks; byte j of a block holds elements 2 j and 2 j + 1.
        let blocks: Vec<u8> = (0..64).map(|at: u8| at.wrapping_mul(37) ^ at >> 3).collect();
        let scales = [127, 128, 129, 126];
        let stack = Stack { experts: 1, rows: 4, cols: 32, interleaved: true };
        let bytes = mxfp4_rows(&blocks, &scales, &stack);
        const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (row, stored) in [0, 2, 1, 3].into_iter().enumerate() {
            let mut values = [0f32; 32];
            dequantize_row(GgmlType::MXFP4, &bytes[17 * row..][..17], &mut values).unwrap();
            for (index, value) in values.into_iter().enumerate() {
                let code = blocks[16 * stored + index / 2] >> (4 * (index % 2)) & 15;
                let sign = if code < 8 { 1.0 } else { -1.0 };
                let scale = [1.0, 2.0, 4.0, 0.5][stored];
                assert_eq!(value, sign * scale * VALUES[usize::from(code & 7)], "row {row}, element {index}");
            }
        }
    }

    #[test]
    fn dense_matrices_are_turned() {
        let stack = Stack { experts: 1, rows: 4, cols: 3, interleaved: true };
        let matrix: Vec<u8> = (0..24).collect();
        let rows = turned_rows(&matrix, 2, &stack);
        let row = |stored: u8| {
            [0, 1, 2].into_iter().flat_map(move |col| [2 * (4 * col + stored), 2 * (4 * col + stored) + 1])
        };
        assert_eq!(rows, [0, 2, 1, 3].into_iter().flat_map(row).collect::<Vec<_>>());
    }
}
