//! Dummy weights against the host's, and their distribution.

use plimsoll_kernels::fill::{FillBits, FillNormal, FillWord, bits, normal};

use crate::arrays::{Output, expect_same, rounded, to_bf16, to_u32};
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "fill/as the host's".into(), run: Box::new(as_the_host) },
        Case { name: "fill/moments".into(), run: Box::new(moments) },
        Case { name: "fill/words".into(), run: Box::new(words) },
    ]
}

fn fill(device: &dyn TestDevice, count: usize, seed: u64, deviation: f32) -> Result<Vec<f32>, String> {
    let out = Output::new(device, 2 * count);
    let op = FillNormal { out: out.at, count: count as u64, seed, deviation };
    op.run(device.queue()).map_err(|e| e.to_string())?;
    Ok(to_bf16(&out.read(device)?))
}

fn as_the_host(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for count in [1, 7, 8, 2049, random.between(1, 9000)] {
        let (seed, deviation) = (random.bits(), [0.02, 1.0][random.below(2)]);
        let want = rounded((0..count as u64).map(|i| normal(seed, i, deviation)).collect());
        expect_same(&format!("{count}"), &fill(device, count, seed, deviation)?, &want)?;
    }
    Ok(())
}

fn words(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    for count in [1, 255, 257, random.between(1, 9000)] {
        let (seed, value, keep) = (random.bits(), random.bits() as u32, random.bits() as u32);
        let (out, same) = (Output::new(device, 4 * count), Output::new(device, 4 * count));
        let (words, queue) = (count as u64, device.queue());
        let filled = FillBits { out: out.at, words, seed, keep }
            .run(queue)
            .and_then(|()| FillWord { out: same.at, words, value }.run(queue));
        filled.map_err(|e| e.to_string())?;
        let want: Vec<u32> = (0..words).map(|i| bits(seed, i) & keep).collect();
        expect_same("random bits", &to_u32(&out.read(device)?), &want)?;
        expect_same("one word", &to_u32(&same.read(device)?), &vec![value; count])?;
    }
    Ok(())
}

/// Mean, variance and fourth moment within five standard errors; and neighbouring seeds share nothing.
fn moments(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    const COUNT: usize = 20_000;
    let seed = random.bits();
    let values = fill(device, COUNT, seed, 1.0)?;
    let moment = |power: i32| values.iter().map(|v| f64::from(*v).powi(power)).sum::<f64>() / COUNT as f64;
    // The sum of eight uniform numbers has a kurtosis of 3 - 6 / 5 / 8.
    for (power, want, error) in [(1, 0.0, 1.0), (2, 1.0, 1.4), (4, 2.85, 9.0)] {
        let got = moment(power);
        if (got - want).abs() > 5.0 * error / (COUNT as f64).sqrt() {
            return Err(format!("moment {power} is {got}, expected {want}"));
        }
    }
    let other = fill(device, COUNT, seed.wrapping_add(1), 1.0)?;
    let same = (0..COUNT - 1).filter(|i| values[i + 1] == other[*i]).count();
    if same > COUNT / 20 {
        Err(format!("{same} values of a neighbouring seed are this one's, shifted"))
    } else {
        Ok(())
    }
}

pub(crate) fn timings() -> Vec<Timing> {
    let count = 1u64 << 30;
    vec![Timing {
        name: "fill_normal/2 GiB".into(),
        bytes: 2 * count,
        flops: 0,
        prepare: Box::new(move |device| {
            let op = FillNormal { out: device.upload(&vec![0; 2 * count as usize]), count, seed: 1, deviation: 0.02 };
            Box::new(move |queue| op.run(queue))
        }),
    }]
}
