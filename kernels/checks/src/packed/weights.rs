//! Random packed weights, and what they stand for.

use half::bf16;
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::packed::{Format, Layout, scale_word};

use crate::attention::e4m3;
use crate::{Random, TestDevice};

/// Matrices of one shape and format.
pub(super) struct Weights {
    pub(super) layout: Layout,
    /// `[matrices, rows, columns]`, exactly.
    pub(super) values: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<u8>,
}

impl Weights {
    pub(super) fn random(random: &mut Random, layout: Layout, matrices: usize) -> Self {
        let mut all = Self { layout, values: Vec::new(), codes: Vec::new(), scales: Vec::new() };
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
            return;
        }
        let codes: Vec<u8> = (0..rows * columns).map(|_| code(format, random)).collect();
        let scales: Vec<u32> = (0..rows * self.layout.row_groups()).map(|_| scale(format, random)).collect();
        for (row, codes) in codes.chunks(columns).enumerate() {
            for (column, &code) in codes.iter().enumerate() {
                let scale = scales[row * self.layout.row_groups() + column / group];
                self.values.push(value(format, code, scale));
            }
        }
        let mut laid = vec![0; self.layout.tile_code_bytes()];
        self.layout.lay_codes(&codes, &mut laid);
        self.codes.append(&mut laid);
        let mut laid = vec![0; self.layout.tile_scale_bytes()];
        self.layout.lay_scales(&scales, &mut laid);
        self.scales.append(&mut laid);
    }

    /// Codes and scales on a device.
    pub(super) fn upload(&self, device: &dyn TestDevice) -> (DevicePtr, DevicePtr) {
        let scales = if self.scales.is_empty() { DevicePtr::NULL } else { device.upload(&self.scales) };
        (device.upload(&self.codes), scales)
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
    }
}

fn scale(format: Format, random: &mut Random) -> u32 {
    let factor = (0.5 + random.uniform() as f32) * if random.below(4) == 0 { -0.03 } else { 0.03 };
    match format {
        Format::Mxfp4 => random.between(118, 130) as u32,
        Format::Int4 => scale_word(factor, random.below(16) as u8),
        Format::Int8 => scale_word(factor, random.below(256) as u8),
        Format::Fp8 | Format::Bf16 => scale_word(factor, 0),
    }
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
        Format::Fp8 | Format::Bf16 => e4m3::decode(code) * factor,
    }
}
