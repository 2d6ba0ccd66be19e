//! Packed products at the shapes of real models' matrices.

use std::cell::Cell;

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::fill::{FillBits, FillWord};
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation, Format, Ggml, Layout, Packed, Way, Work, scale_word};

use super::name;
use crate::arrays::normals_on;
use crate::{TestDevice, Timing};

/// More than any L2 holds: in a model, other layers' weights have passed since a matrix was last read.
pub(crate) const ROTATED_BYTES: u64 = 512 << 20;

/// Such that each [`Way`] is timed.
const TOKENS: [usize; 5] = [1, 32, 64, 256, 4096];
const ROWS: [usize; 2] = [28_672, 4096];

pub(crate) fn timings() -> Vec<Timing> {
    let mut all = Vec::new();
    let formats = [
        (Format::Int4, 128),
        (Format::Fp8, 4096),
        (Format::Mxfp4, 32),
        (Format::Ggml(Ggml::Q4K), 32),
        (Format::Ggml(Ggml::Q5K), 32),
        (Format::Ggml(Ggml::Q6K), 16),
    ];
    for (format, group) in formats {
        for (rows, tokens) in ROWS.into_iter().flat_map(|rows| TOKENS.map(|tokens| (rows, tokens))) {
            all.push(dense(Layout { format, rows, columns: 4096, group }, tokens));
        }
    }
    all
}

/// Random codes with scales around 1/64, for several matrices side by side.
pub(crate) fn weights(device: &dyn TestDevice, layout: Layout, matrices: u64) -> (DevicePtr, DevicePtr) {
    let reserve = |bytes: u64| device.upload(&vec![0; bytes.max(16) as usize]);
    let (code_bytes, scale_bytes) = (matrices * layout.code_bytes() as u64, matrices * layout.scale_bytes() as u64);
    if layout.format == Format::Bf16 {
        return (normals_on(device, code_bytes / 2), DevicePtr::NULL);
    }
    let (codes, scales) = (reserve(code_bytes), reserve(scale_bytes));
    let value = match layout.format {
        Format::Mxfp4 => 0x7979_7979,
        // Factors of 32 and halves of 2^-7.
        Format::Ggml(_) => 0x2020_2020,
        _ => scale_word(1.0 / 64.0, 8),
    };
    let filled = FillBits { out: codes, words: code_bytes / 4, seed: 7, keep: u32::MAX }
        .run(device.queue())
        .and_then(|()| FillWord { out: scales, words: scale_bytes / 4, value }.run(device.queue()));
    filled.unwrap_or_else(|error| panic!("{error}"));
    (codes, scales)
}

fn dense(layout: Layout, tokens: usize) -> Timing {
    let matrix_bytes = (layout.code_bytes() + layout.scale_bytes()) as u64;
    Timing {
        name: format!("packed/{} {} x {} tokens={tokens}", name(layout.format), layout.rows, layout.columns),
        bytes: matrix_bytes + 2 * (tokens * (layout.rows + layout.columns)) as u64,
        flops: 2 * (tokens * layout.rows * layout.columns) as u64,
        prepare: Box::new(move |device| {
            let copies = ROTATED_BYTES.div_ceil(matrix_bytes);
            let (codes, scales) = weights(device, layout, copies);
            let op = Packed {
                output: Output::Bf16,
                y: device.upload(&vec![0; 2 * tokens * layout.rows]),
                x: normals_on(device, (tokens * layout.columns) as u64),
                codes,
                scales,
                bias: DevicePtr::NULL,
                layout,
                activation: Activation::None,
                way: Way::dense(tokens, layout.rows, device.queue().multiprocessors()),
                work: Work::Dense { tokens: tokens as u32, stride: layout.rows as u32 },
            };
            rotated(vec![op], copies, 1)
        }),
    }
}

/// Each run takes the next copy of the weights, for all of `ops`.
pub(crate) fn rotated(ops: Vec<Packed>, copies: u64, matrices: usize) -> crate::Run {
    let turn = Cell::new(0);
    Box::new(move |queue| {
        turn.set((turn.get() + 1) % copies as usize);
        ops.iter().try_for_each(|op| {
            let (codes, scales) = (matrices * op.layout.code_bytes(), matrices * op.layout.scale_bytes());
            let scales = if op.scales.is_null() { op.scales } else { op.scales.byte_add(turn.get() * scales) };
            Packed { codes: op.codes.byte_add(turn.get() * codes), scales, ..*op }.run(queue)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_timed() {
        for way in [Way::Skinny, Way::Tiled64, Way::Tiled128] {
            assert!(
                TOKENS.iter().any(|&tokens| ROWS.iter().any(|&rows| Way::dense(tokens, rows, 132) == way)),
                "{way:?}"
            );
        }
    }
}
