//! Linear layers as models compute them, against sums in f64: biases by whatever way a product goes, and FP8 weights that
//! meet FP8 activations, of which no golden checkpoint has rows enough; and those that stay packed ([`packed`]).

mod packed;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use half::bf16;
use plimsoll_gpu_check::results::{Row, row};
use plimsoll_kernel_checks::Random;
use plimsoll_ops::gpu;
use plimsoll_ops::linear::{Linear, Placement, RowSource};
use plimsoll_ops::quant::{Codes, GgmlType, Grouped, RowFormat, dequantize_row, encode_row};
use serde_json::json;

use crate::worker::{Item, Measure};

/// Of a value that was rounded to bf16, with the little that sums in f32 add.
const BF16: f64 = 1.01 / 256.0;

/// Of each term of which a factor was rounded to E4M3.
const E4M3: f64 = 1.01 / 16.0;

pub(crate) fn items() -> Vec<Item> {
    let item = |name: &str, run: Measure| Item { name: format!("layer/{name}"), run };
    let fp8 = |shape: Shape| -> Measure { Box::new(move |gpu| fp8(shape, &gpu.device)) };
    let mut items = vec![
        item("biases", Box::new(|gpu| biases(&gpu.device))),
        item("fp8 x fp8, one part", fp8(Shape { tokens: 512, rows: 64, columns: 96 })),
        item("fp8 x fp8, padded", fp8(Shape { tokens: 520, rows: 48, columns: 64 })),
        item("fp8 x fp8, several parts", fp8(Shape { tokens: 576, rows: 4112, columns: 8192 })),
        item("fp8 x fp8, few rows and logits", Box::new(|gpu| kept(&gpu.device))),
        item("fp8 x fp8, what is no number", Box::new(|gpu| no_numbers(&gpu.device))),
        item("fp8 x fp8, dummy weights", Box::new(|gpu| dummy(&gpu.device))),
    ];
    items.extend(packed::items());
    items
}

#[derive(Clone, Copy)]
struct Shape {
    tokens: usize,
    rows: usize,
    columns: usize,
}

/// A layer, and what its weights and its bias are.
struct Layer {
    linear: Linear,
    weights: Vec<f32>,
    bias: Vec<f32>,
    columns: usize,
}

impl Layer {
    fn load(format: RowFormat, [rows, columns]: [usize; 2], random: &mut Random, device: &Device) -> Result<Self> {
        let row_bytes = format.row_bytes(columns).expect("whole groups");
        let (mut bytes, mut weights) = (Vec::new(), vec![0.0; rows * columns]);
        for (row, weights) in weights.chunks_exact_mut(columns).enumerate() {
            // Rows of unlike sizes, which have unlike scales.
            encode_row(format, &random.normals(columns, 1.0 + (row % 7) as f32), &mut bytes)?;
            dequantize_row(format, &bytes[row * row_bytes..], weights)?;
        }
        let bias = random.normals(rows, 1.0);
        let source = RowSource::new(format, rows, columns, &bytes);
        let linear = Linear::load(&[source], Some(bias.clone()), &Placement::Gpu(device.clone()))?;
        Ok(Self { linear, weights, bias, columns })
    }

    /// FP8 with a scale a row.
    fn fp8([rows, columns]: [usize; 2], random: &mut Random, device: &Device) -> Result<Self> {
        let format = Grouped { codes: Codes::E4M3, group: columns };
        Self::load(format.into(), [rows, columns], random, device)
    }

    /// The greatest error of `y`, `[tokens, rows]`, as a part of what is allowed: `of_terms` of the terms' sizes and
    /// `of_value` of the sum.
    fn off(&self, x: &[f32], y: &Tensor, of_terms: f64, of_value: f64) -> Result<f64> {
        let allowed = |error: &Error| of_terms * error.terms + of_value * error.sum.abs();
        let off = self.errors(x, y)?.into_iter().map(|error| error.off / allowed(&error));
        // Not a maximum, which would pass over what is no number.
        Ok(off.fold(0.0, |worst, off| if off <= worst { worst } else { off }))
    }

    /// The errors' deviation as a part of the sums'.
    fn deviation(&self, x: &[f32], y: &Tensor) -> Result<f64> {
        let errors = self.errors(x, y)?;
        let square = |of: fn(&Error) -> f64| errors.iter().map(|error| of(error).powi(2)).sum::<f64>();
        Ok((square(|error| error.off) / square(|error| error.sum)).sqrt())
    }

    fn errors(&self, x: &[f32], y: &Tensor) -> Result<Vec<Error>> {
        let y: Vec<f32> = y.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        let mut errors = Vec::with_capacity(y.len());
        for (x, y) in x.chunks_exact(self.columns).zip(y.chunks_exact(self.bias.len())) {
            for ((w, bias), y) in self.weights.chunks_exact(self.columns).zip(&self.bias).zip(y) {
                let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let start = (f64::from(*bias), f64::from(bias.abs()));
                let (sum, terms) = terms.fold(start, |(sum, terms), term| (sum + term, terms + term.abs()));
                errors.push(Error { off: (f64::from(*y) - sum).abs(), sum, terms });
            }
        }
        Ok(errors)
    }
}

/// Of one sum, and what it is and has of terms, by their sizes.
struct Error {
    off: f64,
    sum: f64,
    terms: f64,
}

/// Rounded to bf16, here and on the GPU.
fn activations(tokens: usize, columns: usize, random: &mut Random, device: &Device) -> Result<(Vec<f32>, Tensor)> {
    let rounded: Vec<bf16> = random.normals(tokens * columns, 1.0).into_iter().map(bf16::from_f32).collect();
    let x = rounded.iter().map(|v| v.to_f32()).collect();
    Ok((x, Tensor::from_vec(rounded, (tokens, columns), device)?))
}

fn biases(device: &Device) -> Result<Row> {
    let random = &mut Random::new(1);
    let layer = Layer::load(GgmlType::BF16.into(), [48, 64], random, device)?;
    let mut worst = 0.0f64;
    // For few tokens there is a kernel that cuBLASLt must be faster than.
    for tokens in [1, 5, 40] {
        let (x, on_gpu) = activations(tokens, 64, random, device)?;
        // A bias may be rounded to bf16 first.
        let narrow = layer.off(&x, &layer.linear.forward(&on_gpu)?, 1.0 / 512.0, BF16)?;
        let wide = layer.off(&x, &layer.linear.logits(&on_gpu, None)?, 1e-6, 0.0)?;
        ensure!(
            narrow <= 1.0 && wide <= 1.0,
            "{tokens} tokens: {narrow:.3} to bf16, {wide:.3} to f32, of what is allowed"
        );
        worst = worst.max(narrow).max(wide);
    }
    Ok(row(json!({"error": worst})))
}

/// Above it are the errors that rounding activations to E4M3 makes, of which each is 0.03 on the average; below it are
/// those of bf16.
const ROUNDED_DEVIATION: f64 = 0.01;

fn fp8(Shape { tokens, rows, columns }: Shape, device: &Device) -> Result<Row> {
    /// All would take their time.
    const COMPARED: usize = 2;
    let random = &mut Random::new(2);
    let layer = Layer::fp8([rows, columns], random, device)?;
    let (x, on_gpu) = activations(tokens, columns, random, device)?;
    let y = layer.linear.clone().with_fp8_activations()?.forward(&on_gpu)?;
    ensure!(y.dims() == [tokens, rows] && y.dtype() == DType::BF16, "a result of {:?}, {:?}", y.dims(), y.dtype());
    let mut worst = 0.0f64;
    for first in [0, tokens - COMPARED] {
        let x = &x[first * columns..][..COMPARED * columns];
        let off = layer.off(x, &y.narrow(0, first, COMPARED)?, E4M3, BF16)?;
        ensure!(off <= 1.0, "from token {first} on: {off:.3} of what is allowed");
        worst = worst.max(off);
    }
    let deviation = layer.deviation(&x[..COMPARED * columns], &y.narrow(0, 0, COMPARED)?)?;
    let (is_rounded, should_be) = (deviation > ROUNDED_DEVIATION, gpu::info(device)?.compute_capability == (9, 0));
    ensure!(is_rounded == should_be, "activations were rounded to fp8: {is_rounded}, expected {should_be} of this GPU");
    Ok(row(json!({"error": worst, "deviation": deviation})))
}

/// Few rows keep bf16 activations, and so do logits of however many.
fn kept(device: &Device) -> Result<Row> {
    let random = &mut Random::new(4);
    let layer = Layer::fp8([64, 96], random, device)?;
    let rounding = layer.linear.clone().with_fp8_activations()?;
    let (x, few) = activations(16, 96, random, device)?;
    let few = layer.deviation(&x, &rounding.forward(&few)?)?;
    let (x, many) = activations(512, 96, random, device)?;
    let logits = layer.deviation(&x, &rounding.logits(&many, None)?)?;
    ensure!(few.max(logits) < ROUNDED_DEVIATION, "errors of {few:.4} for few rows and of {logits:.4} for logits");
    Ok(row(json!({"deviation": few.max(logits)})))
}

/// Dummy weights are numbers, each of them: one that were none would make none of its row's results.
fn dummy(device: &Device) -> Result<Row> {
    const SHAPE: Shape = Shape { tokens: 512, rows: 64, columns: 96 };
    const DEVIATION: f32 = 0.1;
    let format = Grouped { codes: Codes::E4M3, group: SHAPE.columns };
    let made = Linear::dummy_quantized(format.into(), [SHAPE.rows, SHAPE.columns], 1, DEVIATION, device)?;
    let layer = made.context("no kernel reads FP8")?.with_fp8_activations()?;
    let (_, x) = activations(SHAPE.tokens, SHAPE.columns, &mut Random::new(5), device)?;
    let y: Vec<f32> = layer.forward(&x)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    ensure!(y.iter().all(|y| y.is_finite()), "dummy weights give what is no number");
    let deviation = (y.iter().map(|y| y * y).sum::<f32>() / y.len() as f32).sqrt();
    let expected = DEVIATION * (SHAPE.columns as f32).sqrt();
    ensure!((deviation / expected - 1.0).abs() < 0.1, "results of deviation {deviation}, expected {expected}");
    Ok(row(json!({"deviation": deviation})))
}

fn no_numbers(device: &Device) -> Result<Row> {
    const SHAPE: Shape = Shape { tokens: 512, rows: 64, columns: 96 };
    let random = &mut Random::new(3);
    let layer = Layer::fp8([SHAPE.rows, SHAPE.columns], random, device)?.linear.with_fp8_activations()?;
    let mut x = random.normals(SHAPE.tokens * SHAPE.columns, 1.0);
    (x[3], x[5 * SHAPE.columns + 7]) = (f32::NAN, f32::INFINITY);
    let x: Vec<bf16> = x.into_iter().map(bf16::from_f32).collect();
    let y = layer.forward(&Tensor::from_vec(x, (SHAPE.tokens, SHAPE.columns), device)?)?;
    let y: Vec<Vec<bf16>> = y.to_device(&Device::Cpu)?.to_vec2()?;
    for (token, y) in y.iter().enumerate() {
        let numbers = y.iter().filter(|y| y.is_finite()).count();
        let expected = if matches!(token, 0 | 5) { 0 } else { SHAPE.rows };
        ensure!(numbers == expected, "token {token}: {numbers} of {} results are numbers", SHAPE.rows);
    }
    Ok(Row::new())
}
