//! Soft caps against f64.

use plimsoll_kernels::logits::Softcap;

use crate::arrays::{Output, expect_close, f32_bytes, to_f32};
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![Case { name: "softcap/any count".into(), run: Box::new(softcap) }]
}

fn softcap(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for count in [1, 3, 4, 1024, 5003, random.between(1, 3000)] {
        let mut x = random.normals(count, 40.0);
        x[random.below(count)] = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0][random.below(4)];
        let cap = [30.0f32, 50.0][random.below(2)];
        let out = Output::holding(device, &f32_bytes(&x));
        Softcap { logits: out.at, count: count as u64, cap }.run(device.queue()).map_err(|e| e.to_string())?;
        let want: Vec<f32> =
            x.iter().map(|x| (f64::from(cap) * (f64::from(*x) / f64::from(cap)).tanh()) as f32).collect();
        expect_close(&format!("{count}"), &to_f32(&out.read(device)?), &want, 1e-6, 0.0)?;
    }
    Ok(())
}

pub(crate) fn timings() -> Vec<Timing> {
    let timing = |rows: u64| Timing {
        name: format!("softcap/gemma-2 vocabulary rows={rows}"),
        bytes: 8 * rows * 256_000,
        flops: 0,
        prepare: Box::new(move |device| {
            let count = rows * 256_000;
            let op = Softcap { logits: device.upload(&f32_bytes(&vec![3.0; count as usize])), count, cap: 30.0 };
            Box::new(move |queue| op.run(queue))
        }),
    };
    [1, 256].map(timing).into()
}
