//! Gated activations against the CPU op, and sums against a loop, on the same bf16 values.

use candle_core::{Device, Tensor};
use plimsoll_kernels::activation::{Activation, Add, GatedMul};
use plimsoll_ops::activation::{gelu_tanh_mul, silu_mul};

use crate::arrays::{Output, bf16_bytes, expect_close, expect_same, normals_on, rounded, to_bf16};
use crate::{Case, Random, TestDevice, Timing};

const NAMES: [(&str, Activation); 2] = [("silu_mul", Activation::Silu), ("gelu_tanh_mul", Activation::GeluTanh)];

pub(crate) fn cases() -> Vec<Case> {
    let gated = NAMES.map(|(name, activation)| Case {
        name: format!("activation/{name}"),
        run: Box::new(move |device, random| gated(device, random, activation)),
    });
    let add = Case { name: "activation/add".into(), run: Box::new(add) };
    gated.into_iter().chain([add]).collect()
}

fn gated(device: &dyn TestDevice, random: &mut Random, activation: Activation) -> Result<(), String> {
    for (tokens, width) in [(1, 8), (3, 1544), (2, 4104), (random.between(1, 9), 8 * random.between(1, 150))] {
        let mut gate_up = rounded(random.normals(tokens * 2 * width, 4.0));
        // Where the exponential overflows or vanishes, for either sign.
        for extreme in [100.0, -100.0, -1e30, 0.0] {
            let at = random.below(tokens) * 2 * width + random.below(width);
            gate_up[at] = rounded(vec![extreme])[0];
        }
        let out = Output::new(device, 2 * tokens * width);
        let op = GatedMul {
            activation,
            out: out.at,
            gate_up: device.upload(&bf16_bytes(&gate_up)),
            tokens: tokens as u32,
            width: width as u32,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let x = Tensor::from_slice(&gate_up, (tokens, 2 * width), &Device::Cpu).map_err(|e| e.to_string())?;
        let want = match activation {
            Activation::Silu => silu_mul(&x),
            Activation::GeluTanh => gelu_tanh_mul(&x),
        };
        let want = want.and_then(|t| t.flatten_all()?.to_vec1::<f32>()).map_err(|e| e.to_string())?;
        // Far in the negative tail the exponential multiplies the rounding of its argument, which is up to 90; results
        // below 1e-36 are lost where the exponential is near its overflow.
        expect_close(&format!("{tokens} x {width}"), &to_bf16(&out.read(device)?), &want, 1.05 / 256.0, 1e-35)?;
    }
    Ok(())
}

fn add(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for count in [8, 2048, 2056, 8 * random.between(1, 700)] {
        let (x, y) = (rounded(random.normals(count, 1.0)), rounded(random.normals(count, 3.0)));
        let out = Output::holding(device, &bf16_bytes(&x));
        let op = Add { out: out.at, x: out.at, y: device.upload(&bf16_bytes(&y)), count: count as u64 };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let want = rounded(x.iter().zip(&y).map(|(x, y)| x + y).collect());
        expect_same(&format!("{count}"), &to_bf16(&out.read(device)?), &want)?;
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let shapes = [("llama-3.1-8b", 14_336, Activation::Silu), ("gemma-3-27b", 21_504, Activation::GeluTanh)];
    let shapes = shapes.iter().flat_map(|shape| [1, 256, 8192].map(|tokens| (*shape, tokens)));
    shapes
        .map(|((model, width, activation), tokens)| Timing {
            name: format!("gated_mul/{model} tokens={tokens}"),
            bytes: 6 * u64::from(tokens) * u64::from(width),
            flops: 0,
            prepare: Box::new(move |device| {
                let count = u64::from(tokens) * u64::from(width);
                let op = GatedMul {
                    activation,
                    out: normals_on(device, count),
                    gate_up: normals_on(device, 2 * count),
                    tokens,
                    width,
                };
                Box::new(move |queue| op.run(queue))
            }),
        })
        .collect()
}
