//! Linear layers on a GPU of FP8 weights with a scale a row, that products of many rows multiply with FP8 activations: by
//! cuBLASLt, at twice bf16's rate. Products of few rows, which the reading of the weights bounds, keep bf16 activations.
//!
//! cuBLASLt wants weights row by row, and those of few rows tile by tile. They are kept for these, and made for the other
//! anew in each product, so many rows at a time as a GPU's cache holds.

use std::sync::Once;

use candle_core::{DType, Result, Tensor};
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::fp8::{MULTIPLE, QuantizeRows, UnpackRows, row_factors};
use plimsoll_kernels::packed::Format;

use super::Form;
use super::quantized::Quantized;
use crate::cuda::{Bias, Cuda, Inputs, Operands, Product, SCRATCH_BYTES, address, launch_error};

/// Fewer rows of `x` keep bf16. They are a step's, padding included, so whose they are does not matter.
///
/// An estimate, of an H200's data sheet (989 and 1,979 TFLOP/s, 4.8 TB/s): a weight costs a row of `x` 2 operations, at
/// about 0.6 of bf16's rate in the packed kernels and 0.7 of FP8's in cuBLASLt, and each product three passes of a byte more
/// (read, written, read). So `2 m / 590e12 s` are `2 m / 1,390e12 + 3 / 4.8e12` at some 320 rows; less where the cache
/// holds what is written. From 512 on, where it is a fifth of the time, the gain is worth what rounding costs. A matrix of many columns is cut
/// into parts of few rows, which fill a GPU from more rows of `x` on.
const FEWEST_ROWS: usize = 512;

/// Weights are cut at a multiple of so many rows: a tile of any algorithm's, and an aligned begin of their results.
const ROW_STEP: usize = 256;

#[derive(Debug, Clone)]
pub(super) struct Fp8 {
    weights: Quantized,
    /// f32 `[out_features]`: what each row's codes are multiplied by.
    factors: Tensor,
    bias: Option<Bias>,
    /// u8; where weights are made row by row, so many at once as it holds. All layers share it.
    unpacked: Tensor,
}

/// Some rows of the weights times all of `x`.
struct Part {
    /// The first of the rows.
    first: usize,
    operands: Operands,
    product: Product,
}

impl Fp8 {
    /// The form of a layer that may round activations: this, where the weights and their GPU allow it.
    pub(super) fn form_of(weights: Quantized) -> Result<Form> {
        let layout = weights.layout();
        let device = weights.scales().device().clone();
        let fits = layout.rows.is_multiple_of(MULTIPLE)
            && layout.columns.is_multiple_of(MULTIPLE)
            && layout.columns <= SCRATCH_BYTES / ROW_STEP;
        let cuda = Cuda::of(&device)?;
        if layout.format != Format::Fp8 || !fits || !cuda.has_fp8_rows()? {
            return Ok(Form::Quantized(weights));
        }
        let Some(factors) = row_factors(&layout, &weights.scales().to_vec1()?) else {
            return Ok(Form::Quantized(weights));
        };
        let factors = Tensor::from_vec(factors, layout.rows, &device)?;
        let bias = weights.bias().map(Bias::of).transpose()?;
        Ok(Form::Fp8(Self { weights, factors, bias, unpacked: cuda.scratch()? }))
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

    /// The product with rounded activations; `None` where cuBLASLt has no way to compute it, which is said once.
    fn multiply(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let (tokens, columns) = x.dims2()?;
        let cuda = Cuda::of(x.device())?;
        let padded = tokens.next_multiple_of(MULTIPLE);
        let code_bytes = padded * columns;
        // Of the step's activations, which are bf16.
        let rounded = (code_bytes + padded * size_of::<f32>()) / DType::BF16.size_in_bytes();
        let rounded = cuda.empty(rounded, DType::BF16)?;
        let codes = address("linear", "rounded x", &rounded, DType::BF16)?;
        let quantize = QuantizeRows {
            codes,
            scales: codes.byte_add(code_bytes),
            x: address("linear", "x", x, DType::BF16)?,
            tokens: tokens as u32,
            padded_tokens: padded as u32,
            columns: columns as u32,
        };
        let y = cuda.empty((padded, self.weights.layout().rows), DType::BF16)?;
        let parts = self.parts(&quantize, &y)?;
        for Part { operands, product, .. } in &parts {
            if !cuda.can_multiply(*operands, *product)? {
                say_it_lacks(product);
                return Ok(None);
            }
        }
        quantize.run(cuda.queue()).map_err(launch_error)?;
        for Part { first, operands, product } in parts {
            self.unpack(&cuda, first, product.n)?;
            cuda.multiply(operands, product)?;
        }
        y.narrow(0, 0, tokens).map(Some)
    }

    /// Products whose weights are made one after the other in the same place.
    fn parts(&self, x: &QuantizeRows, y: &Tensor) -> Result<Vec<Part>> {
        let (layout, step) = (self.weights.layout(), self.rows_at_once());
        let weight = address("linear", "unpacked", &self.unpacked, DType::U8)?;
        let factors = address("linear", "factors", &self.factors, DType::F32)?;
        let bias = self.bias.as_ref().map(|bias| bias.address(DType::BF16)).transpose()?;
        let y = address("linear", "y", y, DType::BF16)?;
        let of_bf16 = |at: DevicePtr, first: usize| at.byte_add(first * DType::BF16.size_in_bytes());
        let part = |first: usize| Part {
            first,
            operands: Operands {
                x: x.codes,
                weight,
                x_scales: x.scales,
                weight_scales: factors.byte_add(first * size_of::<f32>()),
                bias: DevicePtr::NULL,
                bias_as_y: bias.map_or(DevicePtr::NULL, |bias| of_bf16(bias, first)),
                y: of_bf16(y, first),
            },
            product: Product {
                m: x.padded_tokens as usize,
                n: step.min(layout.rows - first),
                k: layout.columns,
                pitch: layout.rows,
                inputs: Inputs::Fp8,
                out: DType::BF16,
                has_bias: bias.is_some(),
            },
        };
        Ok((0..layout.rows).step_by(step).map(part).collect())
    }

    /// As few parts as there is room for, and of like sizes.
    fn rows_at_once(&self) -> usize {
        let layout = self.weights.layout();
        let most = SCRATCH_BYTES / layout.columns / ROW_STEP * ROW_STEP;
        layout.rows.div_ceil(layout.rows.div_ceil(most)).next_multiple_of(ROW_STEP)
    }

    /// Brings so many rows from `first` on, which begins a tile, to where they are multiplied.
    fn unpack(&self, cuda: &Cuda, first: usize, rows: usize) -> Result<()> {
        let layout = self.weights.layout();
        let codes = address("linear", "codes", self.weights.codes(), DType::U8)?;
        let op = UnpackRows {
            rows_out: address("linear", "unpacked", &self.unpacked, DType::U8)?,
            codes: codes.byte_add(layout.tile_codes_at(first)),
            rows: rows as u32,
            columns: layout.columns as u32,
        };
        op.run(cuda.queue()).map_err(launch_error)
    }
}

fn say_it_lacks(product: &Product) {
    static SAID: Once = Once::new();
    let Product { m, n, k, .. } = product;
    SAID.call_once(|| {
        tracing::warn!(
            "cuBLASLt has no algorithm for [{m}, {k}] times [{n}, {k}] of FP8 with a scale a row: such products keep bf16 \
             activations, which `--activations bf16` says of all; a later release of CUDA 13 may have one"
        );
    });
}
