//! Products with few tokens against f64.

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::gemv::{Gemv, MOST_TOKENS, Output};

use crate::arrays::{Output as Written, bf16_bytes, expect_same, f32_bytes, normals_on, rounded, to_bf16, to_f32};
use crate::{Case, Random, TestDevice, Timing};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case { name: "gemv/shapes".into(), run: Box::new(shapes) },
        Case { name: "gemv/alone as among others".into(), run: Box::new(alone) },
        Case { name: "gemv/sizes refused".into(), run: Box::new(refused) },
    ]
}

struct Problem {
    tokens: usize,
    rows: usize,
    columns: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Problem {
    fn new(random: &mut Random, tokens: usize, rows: usize, columns: usize) -> Self {
        let x = rounded(random.normals(tokens * columns, 1.0));
        let w = rounded(random.normals(rows * columns, 1.0));
        let bias = (random.below(2) == 0).then(|| random.normals(rows, 3.0));
        Self { tokens, rows, columns, x, w, bias }
    }

    fn run(&self, device: &dyn TestDevice, output: Output) -> Result<Vec<f32>, String> {
        let bytes = if output == Output::F32 { 4 } else { 2 };
        let y = Written::new(device, bytes * self.tokens * self.rows);
        let op = Gemv {
            y: y.at,
            output,
            x: device.upload(&bf16_bytes(&self.x)),
            w: device.upload(&bf16_bytes(&self.w)),
            bias: self.bias.as_ref().map_or(DevicePtr::NULL, |bias| device.upload(&f32_bytes(bias))),
            tokens: self.tokens as u32,
            rows: self.rows as u32,
            columns: self.columns as u32,
        };
        op.run(device.queue()).map_err(|e| e.to_string())?;
        let written = y.read(device)?;
        Ok(if output == Output::F32 { to_f32(&written) } else { to_bf16(&written) })
    }

    /// The sum, and that of the terms' sizes, which is what errors are measured by.
    fn exact(&self, token: usize, row: usize) -> (f64, f64) {
        let x = &self.x[token * self.columns..][..self.columns];
        let w = &self.w[row * self.columns..][..self.columns];
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        let bias = self.bias.as_ref().map_or(0.0, |bias| f64::from(bias[row]));
        terms.fold((bias, bias.abs()), |(sum, sizes), term| (sum + term, sizes + term.abs()))
    }
}

/// Tokens, rows and columns: the least; an odd tail of each; more columns than a block takes at once; any.
fn shapes(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let any = (random.between(1, 8), random.between(1, 70), 8 * random.between(1, 200));
    for (tokens, rows, columns) in [(1, 1, 8), (8, 16, 128), (3, 37, 1048), (1, 33, 2104), any] {
        let problem = Problem::new(random, tokens, rows, columns);
        for output in [Output::F32, Output::Bf16] {
            let rounding = if output == Output::F32 { 0.0 } else { 1.0 / 256.0 };
            for (i, got) in problem.run(device, output)?.iter().enumerate() {
                let (want, sizes) = problem.exact(i / rows, i % rows);
                let error = (f64::from(*got) - want).abs();
                if error > 1e-6 * sizes + rounding * want.abs() || error.is_nan() {
                    return Err(format!("{tokens} x {rows} x {columns}, {output:?}, element {i}: {got}, not {want}"));
                }
            }
        }
    }
    Ok(())
}

fn alone(device: &dyn TestDevice, random: &mut Random) -> Result<(), String> {
    let together = Problem::new(random, 8, 24, 512);
    let all = together.run(device, Output::F32)?;
    for token in 0..8 {
        let x = together.x[token * 512..][..512].to_vec();
        let single = Problem { tokens: 1, x, w: together.w.clone(), bias: together.bias.clone(), ..together }
            .run(device, Output::F32)?;
        expect_same(&format!("token {token}"), &single, &all[token * 24..][..24])?;
    }
    Ok(())
}

fn refused(device: &dyn TestDevice, _: &mut Random) -> Result<(), String> {
    for (tokens, columns) in [(0, 8), (MOST_TOKENS + 1, 8), (1, 12), (1, 0)] {
        let x = device.upload(&[0; 256]);
        let op = Gemv { y: x, output: Output::F32, x, w: x, bias: DevicePtr::NULL, tokens, rows: 1, columns };
        if op.run(device.queue()).is_ok() {
            return Err(format!("{tokens} tokens of {columns} columns were not refused"));
        }
    }
    Ok(())
}

/// The products of a decode step: qkv, attention's output, gate and up, down, and the logits.
pub(crate) fn timings() -> Vec<Timing> {
    let llama = [(6144, 4096), (4096, 4096), (28_672, 4096), (4096, 14_336), (128_256, 4096)];
    let gemma = [(8192, 5376), (5376, 4096), (43_008, 5376), (5376, 21_504), (262_208, 5376)];
    let shapes = llama.iter().map(|s| ("llama-3.1-8b", *s)).chain(gemma.iter().map(|s| ("gemma-3-27b", *s)));
    shapes.flat_map(|(model, (rows, columns))| [1, 8].map(|tokens| timing(model, tokens, rows, columns))).collect()
}

fn timing(model: &str, tokens: u32, rows: u32, columns: u32) -> Timing {
    /// More than any L2 holds: in a model, other layers' weights have passed since a matrix was last read.
    const ROTATED_BYTES: u64 = 512 << 20;
    let bytes = 2 * u64::from(rows) * u64::from(columns);
    Timing {
        name: format!("gemv/{model} {rows} x {columns} tokens={tokens}"),
        bytes,
        flops: 2 * u64::from(tokens) * u64::from(rows) * u64::from(columns),
        prepare: Box::new(move |device| {
            let copies = ROTATED_BYTES.div_ceil(bytes);
            let op = Gemv {
                y: device.upload(&vec![0; 4 * (tokens * rows) as usize]),
                output: Output::F32,
                x: normals_on(device, u64::from(tokens) * u64::from(columns)),
                w: normals_on(device, copies * bytes / 2),
                bias: DevicePtr::NULL,
                tokens,
                rows,
                columns,
            };
            let turn = std::cell::Cell::new(0);
            Box::new(move |queue| {
                turn.set((turn.get() + 1) % copies);
                Gemv { w: op.w.byte_add((turn.get() * bytes) as usize), ..op }.run(queue)
            })
        }),
    }
}
