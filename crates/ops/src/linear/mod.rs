//! Linear layers on the CPU: `y = x W^T (+ b)` for weights in any format of [`crate::quant`].
//!
//! Weights are repacked once, at load, into panels of 32 output rows (`panel`), so that one vector instruction does 16
//! outputs. A product runs a kernel per (panel, tile of rows of `x`), chosen by what the CPU has (`isa`): quantized
//! weights against `x` quantized to int8 per block of 32 (`quantize`), or everything in f32.
//!
//! Every kernel adds up an output in the same order with the same roundings, whatever the tile and the instruction set:
//! a row's outputs do not depend, to the bit, on the other rows of the batch or on the machine.
//!
//! It must never know what the rows mean: merging q, k and v is the caller's business.
//!
//! Measured on one core of a Zen 5 AMD EPYC (AVX-512 VNNI at 3.7 GHz, 2026-11-21, CPU time, best of 25) for all linear
//! layers of SmolLM2-135M in Q4_1 with the Q8_0 head, 134.5 M weights in 96.5 MB, read from memory:
//!
//! | rows | ms | of the machine's ceiling |
//! |---|---|---|
//! | 1 | 3.1 | 31 GB/s: all that both cores together read |
//! | 8 | 4.6 | 21 GB/s, 470 GOP/s |
//! | 32 | 15.9 | 540 GOP/s of 967 in registers |
//! | 128 | 61 | 560 GOP/s |
//!
//! One matrix in the cache reaches 580 to 665 GOP/s from 8 rows on; the scales, in f32, take about a third of the
//! multipliers' time. On two cores, `gate_up` at 32 rows did 1,090 GOP/s.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod isa;
mod panel;
mod portable;
mod product;
mod quantize;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::indices::TokenIds;
use crate::quant::GgmlType;
use isa::Isa;
use panel::Section;

/// How products with quantized weights are computed. Dense weights (F32, F16, BF16) are always multiplied in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// `x` is quantized to int8 per block of 32 and multiplied in integers: fast. The error of an output is at most
    /// half a step of each block's scale (1/254 of its largest element) times the weights' absolute values.
    Int8,
    /// The weights are dequantized and multiplied in f32: slow, and exact to the checkpoint up to f32 rounding.
    F32,
}

/// Some consecutive output rows of a [`Linear`], row-major as a GGUF file (or, for the dense types, a safetensors file)
/// stores them.
#[derive(Debug, Clone, Copy)]
pub struct RowSource<'a> {
    pub ty: GgmlType,
    /// Output features.
    pub rows: usize,
    /// Input features, the same in all sources of a [`Linear`].
    pub cols: usize,
    /// `rows` rows of [`GgmlType::row_bytes`]`(cols)` bytes, of any alignment.
    pub bytes: &'a [u8],
}

/// A packed `[out_features, in_features]` matrix with an optional bias. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Linear {
    weights: Arc<Weights>,
}

#[derive(Debug)]
struct Weights {
    in_features: usize,
    out_features: usize,
    /// One a source, in the order of their rows.
    sections: Vec<Section>,
    bias: Option<Vec<f32>>,
    activations: Activations,
}

impl Linear {
    /// Repacks the rows of all sources, one after the other, into one matrix.
    ///
    /// # Errors
    /// If there is no source, their `cols` differ, `bytes` is not what `rows` and `cols` take, or the bias is not one
    /// number a row.
    pub fn pack(sources: &[RowSource<'_>], bias: Option<Vec<f32>>, activations: Activations) -> Result<Linear> {
        let Some(first) = sources.first() else { bail!("a linear layer needs at least one source of rows") };
        let in_features = first.cols;
        let mut out_features = 0usize;
        for source in sources {
            if source.cols != in_features {
                bail!("rows of {} and of {in_features} columns cannot be one linear layer", source.cols);
            }
            let expected = source.ty.row_bytes(source.cols).and_then(|row| row.checked_mul(source.rows));
            if expected != Some(source.bytes.len()) {
                bail!(
                    "{} bytes are not {} rows of {} {:?} elements: the tensor is cut short or mislabelled",
                    source.bytes.len(),
                    source.rows,
                    source.cols,
                    source.ty
                );
            }
            // Bounded by the bytes just checked, but for rows of no columns.
            out_features = match out_features.checked_add(source.rows) {
                Some(sum) if in_features > 0 => sum,
                _ => bail!("a linear layer of {} rows and {in_features} columns is not possible", source.rows),
            };
        }
        if bias.as_ref().is_some_and(|bias| bias.len() != out_features) {
            bail!("a bias of {} numbers does not fit {out_features} output features", bias.map_or(0, |b| b.len()));
        }
        let sections = sources.iter().map(Section::pack).collect();
        Ok(Linear { weights: Arc::new(Weights { in_features, out_features, sections, bias, activations }) })
    }

    pub fn in_features(&self) -> usize {
        self.weights.in_features
    }

    pub fn out_features(&self) -> usize {
        self.weights.out_features
    }

    /// Memory that the packed weights take, in bytes, the bias not counted.
    pub fn packed_bytes(&self) -> usize {
        self.weights.sections.iter().map(Section::packed_bytes).sum()
    }

    /// `x W^T (+ b)`: `x` is `[m, in_features]` f32, contiguous, on the CPU; the result `[m, out_features]` f32. A row
    /// of `x` with a NaN or an infinity gives NaN (or, in f32 products, an infinity) and never a number.
    ///
    /// # Errors
    /// If `x` has another shape, dtype or layout.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Product { weights: &self.weights })
    }

    /// As [`Linear::forward`], in f32 on every device: logits are compared closely.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(x)
    }

    /// The rows `ids` of the matrix, dequantized exactly, times `scale`: `[ids, in_features]` f32. The bias is not added.
    /// This is the token embedding, whether its table is tied to the output layer or not.
    ///
    /// # Errors
    /// If an id is not below `out_features`.
    pub fn embed(&self, ids: TokenIds<'_>, scale: f32) -> Result<Tensor> {
        let weights = &self.weights;
        let mut rows = vec![0f32; ids.host.len() * weights.in_features];
        for (&id, row) in ids.host.iter().zip(rows.chunks_exact_mut(weights.in_features)) {
            weights.read_row(id as usize, row)?;
        }
        if scale != 1.0 {
            rows.iter_mut().for_each(|x| *x *= scale);
        }
        Tensor::from_vec(rows, (ids.host.len(), weights.in_features), &candle_core::Device::Cpu)
    }
}

impl Weights {
    fn read_row(&self, id: usize, out: &mut [f32]) -> Result<()> {
        let mut first = 0;
        for section in &self.sections {
            if id - first < section.rows() {
                section.read_row(id - first, out);
                return Ok(());
            }
            first += section.rows();
        }
        bail!("row {id} of a matrix of {} rows", self.out_features)
    }
}

struct Product<'a> {
    weights: &'a Weights,
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, cols) = layout.shape().dims2()?;
        if cols != self.weights.in_features {
            bail!("a linear layer of {} input features was given {cols}", self.weights.in_features);
        }
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("the input of a linear layer must be contiguous")
        };
        let x = &storage.as_slice::<f32>()?[start..end];
        let y = product::forward(self.weights, Isa::best(), x);
        Ok((CpuStorage::F32(y), Shape::from((m, self.weights.out_features))))
    }
}
