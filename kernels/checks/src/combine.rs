//! The sums of experts' parts.

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::combine::Combine;

use crate::arrays::{Output, bf16_bytes, expect_rounded, f32_bytes, normals_on, rounded, to_bf16};
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "combine/sums".into(), run: Box::new(sums) }]
}

fn sums(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = (random.between(1, 9), random.between(1, 9), 8 * random.between(1, 300));
    for (tokens, top, hidden) in [(1, 1, 8), (3, 4, 2056), any] {
        let mut parts = rounded(random.normals(tokens * top * hidden, 1.0));
        for (weighs, is_beside, pads) in [(true, false, false), (false, true, false), (true, true, true)] {
            let real = if pads { random.below(tokens + 1) } else { tokens };
            // What nothing wrote.
            parts[real * top * hidden..].fill(f32::NAN);
            let weights = if weighs { random.normals(tokens * top, 1.0) } else { vec![1.0; tokens * top] };
            let beside = rounded(random.normals(tokens * hidden, if is_beside { 1.0 } else { 0.0 }));
            let out = Output::new(device, 2 * tokens * hidden);
            let given = |is_given: bool, bytes: &[u8]| if is_given { device.upload(bytes) } else { DevicePtr::NULL };
            let op = Combine {
                out: out.at,
                parts: device.upload(&bf16_bytes(&parts)),
                weights: given(weighs, &f32_bytes(&weights)),
                beside: given(is_beside, &bf16_bytes(&beside)),
                num_tokens: given(pads, &(real as u32).to_ne_bytes()),
                tokens: tokens as u32,
                top: top as u32,
                hidden: hidden as u32,
            };
            op.run(device.queue()).map_err(|e| e.to_string())?;
            let sum = |i: usize| {
                let (token, column) = (i / hidden, i % hidden);
                let part = |j: usize| parts[(token * top + j) * hidden + column];
                let terms = if token < real { top } else { 0 };
                (0..terms).fold(0.0f32, |sum, j| weights[token * top + j].mul_add(part(j), sum)) + beside[i]
            };
            let want: Vec<f32> = (0..tokens * hidden).map(sum).collect();
            let what = format!("{real} of {tokens} x {top} x {hidden}");
            expect_rounded(&what, &to_bf16(&out.read(device)?), &want)?;
        }
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let models = [("gpt-oss-20b", 4, 2880), ("qwen3-30b-a3b", 8, 2048), ("llama-4-scout", 1, 5120)];
    models.iter().flat_map(|model| [1, 256, 4096].map(|tokens| timing(*model, tokens))).collect()
}

fn timing((model, top, hidden): (&str, u32, u32), tokens: u32) -> Timing {
    let row = u64::from(tokens) * u64::from(hidden);
    Timing {
        name: format!("combine/{model} tokens={tokens}"),
        bytes: 2 * row * u64::from(top + 1),
        flops: 0,
        prepare: Box::new(move |device| {
            let op = Combine {
                out: normals_on(device, row),
                parts: normals_on(device, row * u64::from(top)),
                weights: device.upload(&vec![0; 4 * (tokens * top) as usize]),
                beside: DevicePtr::NULL,
                num_tokens: DevicePtr::NULL,
                tokens,
                top,
                hidden,
            };
            Box::new(move |queue| op.run(queue))
        }),
    }
}
