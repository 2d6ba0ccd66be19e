//! Random packed weights, and what they stand for.

use half::{bf16, f16};
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::packed::{Format, Ggml, Layout, Scaling, scale_word};

use crate::attention::e4m3;
use crate::{Random, TestDevice};

/// Matrices of one shape and format.
pub(super) struct Weights {
    pub(super) layout: Layout,
    /// `[matrices, rows, columns]`, exactly.
    values: Vec<f32>,
    /// What each is at most: where a minimum is added to a code, the sum of both's sizes.
    sizes: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Weights {
    pub(super) fn random(random: &mut Random, layout: Layout, matrices: usize) -> Self {
        let mut all = Self { layout, values: Vec::new(), sizes: Vec::new(), codes: Vec::new(), scales: Vec::new() };
        for _ in 0..matrices {
            for first in (0..layout.rows).step_by(16) {
                all.add_tile(random, (layout.rows - first).min(16));
            }
        }
        all
    }

    fn add_tile(&mut self, random: &mut Random, rows: usize) {
        let Layout { format, columns, group, .. } = self.layout;
        if format == Format::Bf16 {
            let values: Vec<bf16> = (0..rows * columns).map(|_| bf16::from_f32(random.normal())).collect();
            self.codes.extend(values.iter().flat_map(|v| v.to_ne_bytes()));
            self.values.extend(values.iter().map(|v| v.to_f32()));
            self.sizes.extend(values.iter().map(|v| v.to_f32().abs()));
            return;
        }
        let row_scales = self.layout.row_scales();
        let codes: Vec<u8> = (0..rows * columns).map(|_| code(format, random)).collect();
        let scales: Vec<u32> = (0..rows).flat_map(|_| self.scales_of_row(random)).collect();
        for (codes, scales) in codes.chunks(columns).zip(scales.chunks(row_scales)) {
            for (column, &code) in codes.iter().enumerate() {
                let (value, size) = match format {
                    Format::Ggml(ggml) => ggml_value(ggml, code, scales, (column, columns)),
                    _ => {
                        let value = value(format, code, scales[column / group]);
                        (value, value.abs())
                    }
                };
                self.values.push(value);
                self.sizes.push(size);
            }
        }
        let (mut laid, mut laid_scales) =
            (vec![0; self.layout.tile_code_bytes()], vec![0; self.layout.tile_scale_bytes()]);
        self.layout.lay_tile(&codes, &scales, &mut laid, &mut laid_scales);
        self.codes.append(&mut laid);
        self.scales.append(&mut laid_scales);
    }

    fn scales_of_row(&self, random: &mut Random) -> Vec<u32> {
        let Layout { format, columns, .. } = self.layout;
        let of = |index: usize, random: &mut Random| match format {
            Format::Ggml(ggml) => {
                let is_nested = matches!(ggml.scaling(), Scaling::Nested | Scaling::NestedAndMinima);
                if is_nested && index < columns / 64 { random.bits() as u32 } else { two_halves(random) }
            }
            _ => scale(format, random),
        };
        (0..self.layout.row_scales()).map(|index| of(index, random)).collect()
    }

    /// Codes and scales on a device.
    pub(super) fn upload(&self, device: &dyn TestDevice) -> (DevicePtr, DevicePtr) {
        let scales = if self.scales.is_empty() { DevicePtr::NULL } else { device.upload(&self.scales) };
        (device.upload(&self.codes), scales)
    }

    /// The [`Weights::sizes`] of a row of a matrix.
    pub(super) fn row_sizes(&self, matrix: usize, row: usize) -> &[f32] {
        &self.sizes[(matrix * self.layout.rows + row) * self.layout.columns..][..self.layout.columns]
    }

    /// A row of a matrix.
    pub(super) fn row(&self, matrix: usize, row: usize) -> &[f32] {
        &self.values[(matrix * self.layout.rows + row) * self.layout.columns..][..self.layout.columns]
    }
}

fn code(format: Format, random: &mut Random) -> u8 {
    match format {
        Format::Mxfp4 | Format::Int4 => random.below(16) as u8,
        // Not what is not a number.
        Format::Fp8 => random.below(127) as u8 | (random.below(2) as u8) << 7,
        Format::Int8 | Format::Bf16 => random.bits() as u8,
        Format::Ggml(ggml) => random.below(2 * usize::from(middle(ggml))) as u8,
    }
}

fn scale(format: Format, random: &mut Random) -> u32 {
    let factor = (0.5 + random.uniform() as f32) * if random.below(4) == 0 { -0.03 } else { 0.03 };
    match format {
        Format::Mxfp4 => random.between(118, 130) as u32,
        Format::Int4 => scale_word(factor, random.below(16) as u8),
        Format::Int8 => scale_word(factor, random.below(256) as u8),
        Format::Fp8 | Format::Bf16 | Format::Ggml(_) => scale_word(factor, 0),
    }
}

/// Of either sign.
fn two_halves(random: &mut Random) -> u32 {
    let mut half = || u32::from(f16::from_f32(0.03 * random.normal()).to_bits());
    half() | half() << 16
}

/// The middle of a format's codes, which is zero where it adds nothing to them.
fn middle(ggml: Ggml) -> u8 {
    match ggml {
        Ggml::Q5_0 | Ggml::Q5_1 | Ggml::Q5K => 16,
        Ggml::Q6K => 32,
        Ggml::Q8_0 => 128,
        _ => 8,
    }
}

/// What a code in a row with these words stands for, and what that is at most.
fn ggml_value(ggml: Ggml, code: u8, words: &[u32], (column, columns): (usize, usize)) -> (f32, f32) {
    let half = |word: u32, index: usize| f16::from_bits((word >> (16 * index)) as u16).to_f32();
    let (of_chunks, of_blocks) = words.split_at(columns.div_ceil(64));
    let (chunk, piece, sixteenth) = (column / 64, column / 32 % 2, column / 16 % 4);
    let bytes = of_chunks[chunk].to_le_bytes();
    let (factor, minimum) = match ggml.scaling() {
        Scaling::Halves => (half(of_chunks[chunk], piece), 0.0),
        Scaling::HalvesAndMinima => (half(of_chunks[chunk], piece), half(of_blocks[chunk], piece)),
        Scaling::Nested => (half(of_blocks[chunk / 4], 0) * f32::from(bytes[sixteenth] as i8), 0.0),
        Scaling::NestedAndMinima => {
            let [small, small_minimum] = match ggml.group() {
                16 => [bytes[sixteenth] & 15, bytes[sixteenth] >> 4],
                _ => [bytes[2 * piece], bytes[2 * piece + 1]],
            };
            let block = of_blocks[chunk / 4];
            (half(block, 0) * f32::from(small), half(block, 1) * f32::from(small_minimum))
        }
    };
    let zero = match ggml.scaling() {
        Scaling::Halves | Scaling::Nested => i16::from(middle(ggml)),
        Scaling::HalvesAndMinima | Scaling::NestedAndMinima => 0,
    };
    let product = f32::from(i16::from(code) - zero) * factor;
    (product + minimum, product.abs() + minimum.abs())
}

/// Of the formats that have scales.
fn value(format: Format, code: u8, scale: u32) -> f32 {
    const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let (factor, zero) = (f32::from_bits(scale & !0xFF), (scale & 0xFF) as i32);
    match format {
        Format::Mxfp4 => {
            let size = E2M1[usize::from(code & 7)] * 2f32.powi(scale as i32 - 127);
            if code & 8 == 0 { size } else { -size }
        }
        Format::Int4 | Format::Int8 => (i32::from(code) - zero) as f32 * factor,
        Format::Fp8 | Format::Bf16 | Format::Ggml(_) => e4m3::decode(code) * factor,
    }
}
