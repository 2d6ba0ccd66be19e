//! Norms against the CPU op on the same bf16 values.

use candle_core::{Device, Tensor};
use plimsoll_kernels::rms_norm::{AddRmsNorm, MOST_HIDDEN, RmsNorm, SandwichNorm};
use plimsoll_ops::norm;

use crate::arrays::{Output, bf16_bytes, expect_rounded, expect_same, f32_bytes, normals_on, rounded, to_bf16};
use crate::{Case, Random, TestDevice, Timing};

const EPS: f32 = 1e-5;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "rms_norm/alone".into(), run: Box::new(alone) },
        Case { name: "rms_norm/with residual".into(), run: Box::new(with_residual) },
        Case { name: "rms_norm/sandwich".into(), run: Box::new(sandwich) },
        Case { name: "rms_norm/sizes refused".into(), run: Box::new(refused) },
    ]
}

/// Rows and widths: one vector, a warp and one more, more than a block's threads hold at once, the widest.
fn shapes(random: &mut Random) -> Vec<(usize, usize)> {
    let any = (random.between(1, 5), 8 * random.between(1, 400));
    vec![(1, 8), (3, 256), (2, 264), (1, 4104), (1, MOST_HIDDEN as usize), any]
}

fn tensor(values: &[f32], shape: impl Into<candle_core::Shape>) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).expect("a slice of the shape's size")
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|t| t.to_vec1()).expect("f32 on the CPU")
}

fn norm_of(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let x = tensor(x, (x.len() / weight.len(), weight.len()));
    floats(&norm::rms_norm(&x, &tensor(weight, weight.len()), EPS).expect("good shapes"))
}

fn alone(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (rows, hidden) in shapes(random) {
        let x = rounded(random.normals(rows * hidden, 3.0));
        let weight = random.normals(hidden, 1.0);
        let in_place = random.below(2) == 1;
        let given = Output::holding(device, &bf16_bytes(&x));
        let out = if in_place { given } else { Output::new(device, 2 * rows * hidden) };
        let op = RmsNorm {
            out: out.at,
            x: if in_place { out.at } else { device.upload(&bf16_bytes(&x)) },
            weight: device.upload(&f32_bytes(&weight)),
            rows: rows as u32,
            hidden: hidden as u32,
            eps: EPS,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        expect_rounded(&format!("{rows} x {hidden}"), &to_bf16(&out.read(device)?), &norm_of(&x, &weight))?;
    }
    Ok(())
}

fn with_residual(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (rows, hidden) in shapes(random) {
        let branch = rounded(random.normals(rows * hidden, 1.0));
        let residual = rounded(random.normals(rows * hidden, 5.0));
        let weight = random.normals(hidden, 1.0);
        let sum = Output::holding(device, &bf16_bytes(&residual));
        let normed = Output::new(device, 2 * rows * hidden);
        let op = AddRmsNorm {
            normed: normed.at,
            residual: sum.at,
            branch: device.upload(&bf16_bytes(&branch)),
            weight: device.upload(&f32_bytes(&weight)),
            rows: rows as u32,
            hidden: hidden as u32,
            eps: EPS,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let want = rounded(branch.iter().zip(&residual).map(|(b, r)| b + r).collect());
        expect_same(&format!("sum of {rows} x {hidden}"), &to_bf16(&sum.read(device)?), &want)?;
        let normed = to_bf16(&normed.read(device)?);
        expect_rounded(&format!("norm of {rows} x {hidden}"), &normed, &norm_of(&want, &weight))?;
    }
    Ok(())
}

fn sandwich(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for (rows, hidden) in shapes(random) {
        let branch = rounded(random.normals(rows * hidden, 40.0));
        let residual = rounded(random.normals(rows * hidden, 5.0));
        let (post, weight) = (random.normals(hidden, 1.0), random.normals(hidden, 1.0));
        let sum = Output::holding(device, &bf16_bytes(&residual));
        let normed = Output::holding(device, &bf16_bytes(&branch));
        let op = SandwichNorm {
            normed: normed.at,
            residual: sum.at,
            branch: normed.at,
            post: device.upload(&f32_bytes(&post)),
            weight: device.upload(&f32_bytes(&weight)),
            rows: rows as u32,
            hidden: hidden as u32,
            eps: EPS,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let want: Vec<f32> = norm_of(&branch, &post).iter().zip(&residual).map(|(b, r)| b + r).collect();
        let got = to_bf16(&sum.read(device)?);
        // The addend has its own rounding error in f32, which shows where the sum cancels.
        crate::arrays::expect_close(&format!("sum of {rows} x {hidden}"), &got, &want, 1.01 / 256.0, 1e-5)?;
        // A sum that rounds the other way is normalised as it is.
        expect_rounded(
            &format!("norm of {rows} x {hidden}"),
            &to_bf16(&normed.read(device)?),
            &norm_of(&got, &weight),
        )?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    for hidden in [0, 12, MOST_HIDDEN + 8] {
        let x = device.upload(&[0; 64]);
        let op = RmsNorm { out: x, x, weight: x, rows: 1, hidden, eps: EPS };
        if op.run(device.queue()).is_ok() {
            return Err(format!("hidden = {hidden} was not refused"));
        }
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let shapes = [("llama-3.1-8b", 4096), ("gemma-3-27b", 5376)];
    let shapes = shapes.iter().flat_map(|shape| [1, 256, 8192].map(|rows| (*shape, rows)));
    shapes
        .flat_map(|((model, hidden), rows)| [add_timing(model, hidden, rows), sandwich_timing(model, hidden, rows)])
        .collect()
}

fn add_timing(model: &str, hidden: u32, rows: u32) -> Timing {
    let count = u64::from(rows) * u64::from(hidden);
    Timing {
        name: format!("add_rms_norm/{model} rows={rows}"),
        bytes: 8 * count + 4 * u64::from(hidden),
        flops: 0,
        prepare: Box::new(move |device| {
            let op = AddRmsNorm {
                normed: normals_on(device, count),
                residual: normals_on(device, count),
                branch: normals_on(device, count),
                weight: device.upload(&f32_bytes(&vec![1.0; hidden as usize])),
                rows,
                hidden,
                eps: EPS,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}

fn sandwich_timing(model: &str, hidden: u32, rows: u32) -> Timing {
    let count = u64::from(rows) * u64::from(hidden);
    Timing {
        name: format!("sandwich_norm/{model} rows={rows}"),
        bytes: 8 * count + 8 * u64::from(hidden),
        flops: 0,
        prepare: Box::new(move |device| {
            let weight = device.upload(&f32_bytes(&vec![1.0; hidden as usize]));
            let op = SandwichNorm {
                normed: normals_on(device, count),
                residual: normals_on(device, count),
                branch: normals_on(device, count),
                post: weight,
                weight,
                rows,
                hidden,
                eps: EPS,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}
