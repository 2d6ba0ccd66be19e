//! Mixtures of experts as models compute them, against the same on the CPU: few tokens and many, experts of few positions
//! and of many at once, and a step's padding, which goes to none.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use half::bf16;
use plimsoll_gpu_check::results::row;
use plimsoll_kernel_checks::Random;
use plimsoll_ops::linear::{Activations, Linear, Placement, RowSource};
use plimsoll_ops::moe::{Activation, Expert, Experts, Weighting, route_by};
use plimsoll_ops::quant::{Codes, GgmlType, Grouped, RowFormat, encode_row};
use serde_json::json;

use crate::worker::Item;

const HIDDEN: usize = 64;
const INNER: usize = 96;
const EXPERTS: usize = 8;
const TOP: usize = 2;

/// Tokens of a step and of it real. With 2 of 8 experts a token: experts of few positions, of few and of many, of many;
/// routing by one block, and by several.
const STEPS: [(usize, usize); 4] = [(16, 5), (48, 40), (64, 0), (272, 201)];

/// Between the products a GPU rounds to bf16: of the outputs' root mean square.
const TOLERANCE: f64 = 0.01;

pub(crate) fn items() -> Vec<Item> {
    let int4 = Grouped { codes: Codes::Int4, group: 32 };
    let formats: [(&str, RowFormat); 3] =
        [("bf16", GgmlType::BF16.into()), ("mxfp4", GgmlType::MXFP4.into()), ("int4", int4.into())];
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 7.0 };
    let ways = [(clamped, Weighting::AmongChosen), (Activation::SiluMul, Weighting::SigmoidOfInput)];
    let item = |(name, format): (&str, RowFormat)| Item {
        name: format!("layer/experts {name}"),
        run: Box::new(move |gpu| {
            let mut worst = 0.0f64;
            for (activation, weighting) in ways {
                worst = worst.max(check(format, activation, weighting, &gpu.device)?);
            }
            Ok(row(json!({"error": worst})))
        }),
    };
    formats.into_iter().map(item).collect()
}

/// A router and its experts.
struct Mixture {
    router: Linear,
    experts: Experts,
}

impl Mixture {
    /// The same whatever the placement.
    fn load(format: RowFormat, activation: Activation, placement: &Placement) -> Result<Self> {
        let mut random = Random::new(11);
        let mut linear = |rows: usize, columns: usize, format: RowFormat, is_router: bool| -> Result<Linear> {
            let mut bytes = Vec::new();
            for _ in 0..rows {
                encode_row(format, &random.normals(columns, 0.2), &mut bytes)?;
            }
            let sources = [RowSource::new(format, rows, columns, &bytes)];
            Ok(match is_router {
                true => Linear::load_widened(&sources, None, placement)?,
                false => Linear::load_alike(&sources, Some(random.normals(rows, 0.5)), placement)?,
            })
        };
        let router = linear(EXPERTS, HIDDEN, GgmlType::BF16.into(), true)?;
        let expert = |_| {
            Ok(Expert {
                gate_up: linear(2 * INNER, HIDDEN, format, false)?,
                down: linear(HIDDEN, INNER, format, false)?,
            })
        };
        let experts = (0..EXPERTS).map(expert).collect::<Result<Vec<_>>>()?;
        Ok(Self { router, experts: Experts::new(experts, activation)? })
    }

    fn run(
        &self,
        x: &Tensor,
        real: Option<&Tensor>,
        weighting: Weighting,
        beside: Option<&Tensor>,
    ) -> Result<Vec<f32>> {
        let routes = route_by(&self.router, x, real, TOP, weighting)?;
        let y = self.experts.forward(x, &routes, beside)?;
        Ok(y.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

/// The greatest relative error of a step's.
fn check(format: RowFormat, activation: Activation, weighting: Weighting, device: &Device) -> Result<f64> {
    let on_gpu = Mixture::load(format, activation, &Placement::Gpu(device.clone()))?;
    let on_cpu = Mixture::load(format, activation, &Placement::Cpu(Activations::F32))?;
    let mut random = Random::new(12);
    let mut worst = 0.0f64;
    for (tokens, real) in STEPS {
        let mut rounded = |deviation: f32| -> Vec<bf16> {
            random.normals(tokens * HIDDEN, deviation).into_iter().map(bf16::from_f32).collect()
        };
        let (x, beside) = (rounded(1.0), rounded(3.0));
        let upload = |values: &[bf16]| Tensor::from_slice(values, (tokens, HIDDEN), device);
        let wide = |values: &[bf16]| -> Vec<f32> { values[..real * HIDDEN].iter().map(|v| v.to_f32()).collect() };
        let num_tokens = Tensor::new(&[real as u32], device)?;
        let added = upload(&beside)?;
        let y = on_gpu.run(&upload(&x)?, Some(&num_tokens), weighting, Some(&added))?;
        let padding = y[real * HIDDEN..].iter().zip(&beside[real * HIDDEN..]);
        ensure!(padding.into_iter().all(|(y, beside)| *y == beside.to_f32()), "{tokens} tokens: padding was computed");
        if real == 0 {
            continue;
        }
        let of_real = |values: &[bf16]| Tensor::from_vec(wide(values), (real, HIDDEN), &Device::Cpu);
        let expected = on_cpu.run(&of_real(&x)?, None, weighting, Some(&of_real(&beside)?))?;
        let sum = |of: &dyn Fn(f32, f32) -> f32| -> f64 {
            y.iter().zip(&expected).map(|(y, expected)| f64::from(of(*y, *expected)).powi(2)).sum()
        };
        let error = (sum(&|y, expected| y - expected) / sum(&|_, expected| expected)).sqrt();
        ensure!(error < TOLERANCE, "{activation:?}, {weighting:?}, {real} of {tokens} tokens: an error of {error:.4}");
        worst = worst.max(error);
    }
    Ok(worst)
}
