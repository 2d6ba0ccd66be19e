//! Queries by temperature against the CPU op's factors.

use plimsoll_kernels::temperature::ScaleQueries;
use plimsoll_ops::temperature::Temperature;

use crate::arrays::{Output, bf16_bytes, expect_rounded, rounded, to_bf16, u32_bytes};
use crate::{Case, Random, TestDevice};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "temperature/positions".into(), run: Box::new(positions) }]
}

fn positions(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let temperature = Temperature { floor_scale: 8192.0, attn_scale: 0.1 };
    for (tokens, width) in [(1, 8), (5, 5120), (random.between(1, 9), 8 * random.between(1, 300))] {
        let q = rounded(random.normals(tokens * width, 2.0));
        // Below, at and beyond a step, whatever the division's last bit is.
        let near = [0, 8190, 8191, 8192, 16_383, 1 << 20];
        let positions: Vec<u32> = (0..tokens).map(|_| near[random.below(6)] + 10 * random.below(99) as u32).collect();
        let out = Output::holding(device, &bf16_bytes(&q));
        let op = ScaleQueries {
            q: out.at,
            positions: device.upload(&u32_bytes(&positions)),
            tokens: tokens as u32,
            width: width as u32,
            floor_scale: temperature.floor_scale,
            attn_scale: temperature.attn_scale,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let want = q.iter().enumerate().map(|(i, q)| q * temperature.at(positions[i / width]));
        let want: Vec<f32> = want.collect();
        expect_rounded(&format!("{tokens} x {width}"), &to_bf16(&out.read(device)?), &want)?;
    }
    Ok(())
}
