//! What fp8 products are handed: activations against the bound of fp8's rounding, and weights against how they were laid.

use plimsoll_kernels::fp8::{QuantizeRows, UnpackRows, row_factors};
use plimsoll_kernels::packed::{Format, Layout, scale_word};

use crate::arrays::{Output, bf16_bytes, expect_same, normals_on, rounded, to_f32};
use crate::attention::e4m3;
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "fp8/activations".into(), run: Box::new(activations) },
        Case { name: "fp8/activations that are no numbers, or tiny".into(), run: Box::new(extremes) },
        Case { name: "fp8/weights".into(), run: Box::new(weights) },
        Case { name: "fp8/sizes refused".into(), run: Box::new(refused) },
    ]
}

/// What a code stands for.
fn value(code: u8) -> f32 {
    if code & 0x7f == 0x7f { f32::NAN } else { e4m3::decode(code) }
}

/// Codes and scales of `x`, `[tokens, columns]`, padded to so many tokens.
fn quantize(
    device: &dyn TestDevice,
    x: &[f32],
    columns: usize,
    padded_tokens: usize,
) -> Result<(Vec<u8>, Vec<f32>), String> {
    let (codes, scales) = (Output::new(device, padded_tokens * columns), Output::new(device, 4 * padded_tokens));
    let op = QuantizeRows {
        codes: codes.at,
        scales: scales.at,
        x: device.upload(&bf16_bytes(x)),
        tokens: (x.len() / columns) as u32,
        padded_tokens: padded_tokens as u32,
        columns: columns as u32,
    };
    op.run(device.queue()).map_err(|e| e.to_string())?;
    Ok((codes.read(device)?, to_f32(&scales.read(device)?)))
}

/// Tokens, with padding, columns: the least; a row longer than a block takes at once; any.
fn activations(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let tokens = random.between(1, 20);
    let any = (tokens, tokens.next_multiple_of(16), 16 * random.between(1, 90));
    for (tokens, padded, columns) in [(1, 1, 16), (3, 16, 8192 + 48), any] {
        let x = rounded(random.normals(tokens * columns, 2.0));
        let (codes, scales) = quantize(device, &x, columns, padded)?;
        for (token, x) in x.chunks_exact(columns).enumerate() {
            let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            let scale = scales[token];
            if (scale - largest / 448.0).abs() > 1e-6 * scale {
                return Err(format!("token {token}: scale {scale} for a row up to {largest}"));
            }
            for (column, (x, code)) in x.iter().zip(&codes[token * columns..]).enumerate() {
                let off = (value(*code) * scale - x).abs();
                // Half a unit of three bits of mantissa, or of the least code.
                if off > (x.abs() / 16.0).max(scale / 1024.0) * 1.001 || off.is_nan() {
                    return Err(format!("token {token}, column {column}: code {code} at {scale} for {x}"));
                }
            }
        }
        expect_same("codes of padding", &codes[tokens * columns..], &vec![0; (padded - tokens) * columns])?;
        expect_same("scales of padding", &scales[tokens..], &vec![0.0; padded - tokens])?;
    }
    Ok(())
}

/// What is no number stays none, whatever stands beside it; zeros and next to zeros are no trouble.
fn extremes(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    const COLUMNS: usize = 64;
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = rounded(random.normals(COLUMNS, 1.0));
        let at = random.below(COLUMNS);
        x[at] = odd;
        let (codes, scales) = quantize(device, &x, COLUMNS, 1)?;
        if (value(codes[at]) * scales[0]).is_finite() {
            return Err(format!("{odd} became {} times {}", value(codes[at]), scales[0]));
        }
    }
    for size in [0.0, 1e-38, 1e37] {
        let x = rounded(random.normals(COLUMNS, size));
        let (codes, scales) = quantize(device, &x, COLUMNS, 1)?;
        for (x, code) in x.iter().zip(codes) {
            let off = (value(code) * scales[0] - x).abs();
            if off > (x.abs() / 16.0).max(scales[0]) * 1.001 || off.is_nan() {
                return Err(format!("code {code} at {} for {x}", scales[0]));
            }
        }
    }
    Ok(())
}

/// Rows, columns: the least; odd tails of each; more columns than a block takes at once; any.
fn weights(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = (8 * random.between(1, 20), 32 * random.between(1, 30));
    for (rows, columns) in [(8, 32), (40, 96), (24, 1120), any] {
        let layout = Layout { format: Format::Fp8, rows, columns, group: columns };
        let codes: Vec<u8> = (0..rows * columns).map(|_| random.bits() as u8).collect();
        let factors: Vec<f32> = (0..rows).map(|row| row as f32 * 0.25 - 1.0).collect();
        let (mut laid, mut scales) = (vec![0; layout.code_bytes()], vec![0; layout.scale_bytes()]);
        let tiles = codes.chunks(16 * columns).zip(factors.chunks(16));
        let places =
            laid.chunks_exact_mut(layout.tile_code_bytes()).zip(scales.chunks_exact_mut(layout.tile_scale_bytes()));
        for ((codes, factors), (code_bytes, scale_bytes)) in tiles.zip(places) {
            let words: Vec<u32> = factors.iter().map(|factor| scale_word(*factor, 0)).collect();
            layout.lay_tile(codes, &words, code_bytes, scale_bytes);
        }
        if row_factors(&layout, &scales) != Some(factors) {
            return Err(format!("the factors of {rows} rows are not those that were laid"));
        }
        let out = Output::new(device, rows * columns);
        let op =
            UnpackRows { rows_out: out.at, codes: device.upload(&laid), rows: rows as u32, columns: columns as u32 };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        expect_same(&format!("{rows} x {columns}"), &out.read(device)?, &codes)?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    let at = device.upload(&[0; 256]);
    let quantize = |tokens, padded_tokens, columns| {
        QuantizeRows { codes: at, scales: at, x: at, tokens, padded_tokens, columns }.run(device.queue())
    };
    let unpack = |columns| UnpackRows { rows_out: at, codes: at, rows: 8, columns }.run(device.queue());
    if [quantize(1, 1, 8), quantize(1, 1, 0), quantize(2, 1, 16), unpack(0), unpack(48)].iter().any(Result::is_ok) {
        return Err("sizes that no kernel takes were not refused".into());
    }
    Ok(())
}

/// A prefill's activations, and the weights of a layer.
pub(crate) fn timings() -> Vec<Timing> {
    const COLUMNS: u64 = 4096;
    let activations = [512u64, 4096].map(|tokens| Timing {
        name: format!("fp8/activations {tokens} x {COLUMNS}"),
        bytes: 3 * tokens * COLUMNS,
        flops: 0,
        prepare: Box::new(move |device| {
            let op = QuantizeRows {
                codes: device.upload(&vec![0; (tokens * COLUMNS) as usize]),
                scales: device.upload(&vec![0; 4 * tokens as usize]),
                x: normals_on(device, tokens * COLUMNS),
                tokens: tokens as u32,
                padded_tokens: tokens as u32,
                columns: COLUMNS as u32,
            };
            Box::new(move |queue| op.run(queue))
        }),
    });
    let weights = [4096u64, 28_672].map(|rows| Timing {
        name: format!("fp8/weights {rows} x {COLUMNS}"),
        bytes: 2 * rows * COLUMNS,
        flops: 0,
        prepare: Box::new(move |device| {
            let bytes = (rows * COLUMNS) as usize;
            let op = UnpackRows {
                rows_out: device.upload(&vec![0; bytes]),
                codes: device.upload(&vec![0; bytes]),
                rows: rows as u32,
                columns: COLUMNS as u32,
            };
            Box::new(move |queue| op.run(queue))
        }),
    });
    activations.into_iter().chain(weights).collect()
}
