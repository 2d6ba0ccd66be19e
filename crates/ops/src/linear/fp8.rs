//! Linear layers on a GPU of FP8 weights with a scale a row, that products of many rows multiply with FP8 activations: by
//! cuBLASLt, at twice bf16's rate. Products of few rows, which the reading of the weights bounds, keep bf16 activations.
//!
//! cuBLASLt wants weights row by row, and those of few rows tile by tile. They are kept for these, and made for the other
//! anew in each product, so many rows at a time as a GPU's cache holds.

use candle_core::{DType, Result, Tensor};
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::fp8::{MULTIPLE, QuantizeRows, UnpackRows, row_factors};
use plimsoll_kernels::packed::Format;

use super::Form;
use super::quantized::Quantized;
use crate::cuda::{Cuda, Inputs, Operands, Product, address, launch_error};

/// Fewer rows of `x` keep bf16.
///
/// An estimate, of an H200's data sheet (989 and 1,979 TFLOP/s, 4.8 TB/s): a weight costs a row of `x` 2 operations, at
/// about 0.6 of bf16's rate in the packed kernels and 0.7 of FP8's in cuBLASLt, and each product three passes of a byte more
/// (read, written, read). So `2 m / 590e12 s` are `2 m / 1,390e12 + 3 / 4.8e12` at some 320 rows; less where the cache
/// holds what is written. From 512 on, where it is a fifth of the time, the gain is worth what rounding costs.
const FEWEST_ROWS: usize = 512;

/// Weights that are made row by row at once, in bytes: a part of what a Hopper's L2 cache holds.
const MOST_BYTES: usize = 32 << 20;

/// Weights are cut at a multiple of so many rows: a tile of any algorithm's, and an aligned begin of their results.
const ROW_STEP: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct Fp8 {
    weights: Quantized,
    /// f32 `[out_features]`: what each row's codes are multiplied by.
    factors: Tensor,
}

impl Fp8 {
    /// The form of a layer that may round activations: this, where the weights and their GPU allow it.
    pub(super) fn form_of(weights: Quantized) -> Result<Form> {
        let layout = weights.layout();
        let device = weights.scales().device().clone();
        let fits = layout.rows.is_multiple_of(MULTIPLE) && layout.columns.is_multiple_of(MULTIPLE);
        if layout.format != Format::Fp8 || !fits || !Cuda::of(&device)?.has_fp8_rows()? {
            return Ok(Form::Quantized(weights));
        }
        let Some(factors) = row_factors(&layout, &weights.scales().to_vec1()?) else {
            return Ok(Form::Quantized(weights));
        };
        Ok(Form::Fp8(Self { weights, factors: Tensor::from_vec(factors, layout.rows, &device)? }))
    }

    pub(super) fn weights(&self) -> &Quantized {
        &self.weights
    }

    /// `x`: bf16 `[m, in_features]`; the result is bf16 `[m, out_features]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        if tokens >= FEWEST_ROWS
            && columns == self.weights.layout().columns
            && let Some(y) = self.multiply(x)?
        {
            return Ok(y);
        }
        self.weights.forward(x, DType::BF16, None)
    }

    /// The product with rounded activations; `None` where cuBLASLt has no way to compute it.
    fn multiply(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let (tokens, layout) = (x.dim(0)?, self.weights.layout());
        let cuda = Cuda::of(x.device())?;
        let padded = tokens.next_multiple_of(MULTIPLE);
        let codes = cuda.empty((padded, layout.columns), DType::U8)?;
        let scales = cuda.empty(padded, DType::F32)?;
        let quantize = QuantizeRows {
            codes: address("linear", "codes of x", &codes, DType::U8)?,
            scales: address("linear", "scales of x", &scales, DType::F32)?,
            x: address("linear", "x", x, DType::BF16)?,
            tokens: tokens as u32,
            padded_tokens: padded as u32,
            columns: layout.columns as u32,
        };
        quantize.run(cuda.queue()).map_err(launch_error)?;
        let y = cuda.empty((padded, layout.rows), DType::BF16)?;
        let step = rows_at_once(layout.columns).min(layout.rows);
        let unpacked = cuda.empty((step, layout.columns), DType::U8)?;
        for first in (0..layout.rows).step_by(step) {
            let rows = step.min(layout.rows - first);
            let weight = self.unpack(&cuda, first, rows, &unpacked)?;
            let operands = Operands {
                x: quantize.codes,
                weight,
                x_scales: quantize.scales,
                weight_scales: address("linear", "factors", &self.factors, DType::F32)?
                    .byte_add(first * size_of::<f32>()),
                bias: DevicePtr::NULL,
                bias_as_y: self.bias_from(first)?,
                y: address("linear", "y", &y, DType::BF16)?.byte_add(first * DType::BF16.size_in_bytes()),
            };
            let product = Product {
                m: padded,
                n: rows,
                k: layout.columns,
                pitch: layout.rows,
                inputs: Inputs::Fp8,
                out: DType::BF16,
                has_bias: self.weights.bias().is_some(),
            };
            if !cuda.multiply(operands, product)? {
                return Ok(None);
            }
        }
        y.narrow(0, 0, tokens).map(Some)
    }

    /// Brings rows from `first` on to `out`, row by row.
    fn unpack(&self, cuda: &Cuda, first: usize, rows: usize, out: &Tensor) -> Result<DevicePtr> {
        const TILE_ROWS: usize = 16;
        let layout = self.weights.layout();
        let codes = address("linear", "codes", self.weights.codes(), DType::U8)?;
        let op = UnpackRows {
            rows_out: address("linear", "unpacked", out, DType::U8)?,
            codes: codes.byte_add(first / TILE_ROWS * layout.tile_code_bytes()),
            rows: rows as u32,
            columns: layout.columns as u32,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(op.rows_out)
    }

    fn bias_from(&self, first: usize) -> Result<DevicePtr> {
        match self.weights.bias() {
            Some(bias) => Ok(bias.address(DType::BF16)?.byte_add(first * DType::BF16.size_in_bytes())),
            None => Ok(DevicePtr::NULL),
        }
    }
}

fn rows_at_once(columns: usize) -> usize {
    (MOST_BYTES / columns / ROW_STEP * ROW_STEP).max(ROW_STEP)
}
