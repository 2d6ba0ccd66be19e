//! Packed products at the shapes of real models: routed evenly, as trained routers nearly do.

use std::cell::Cell;

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::fill::{FillBits, FillWord};
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation, Format, Layout, Packed, Way, Work, scale_word};
use plimsoll_kernels::route::{Route, RoutePlanSize, Weighting};

use crate::arrays::{f32_bytes, normals_on};
use crate::{Random, TestDevice, Timing};

/// More than any L2 holds: in a model, other layers' weights have passed since a matrix was last read.
const ROTATED_BYTES: u64 = 512 << 20;

/// Such that each [`Way`] is timed, of one matrix and of experts.
const TOKENS: [usize; 5] = [1, 32, 64, 256, 4096];
const ROWS: [usize; 2] = [28_672, 4096];

struct Mixture {
    model: &'static str,
    format: Format,
    hidden: usize,
    inner: usize,
    experts: usize,
    top: usize,
    group: usize,
}

pub(crate) fn timings() -> Vec<Timing> {
    let mixtures = [
        Mixture {
            model: "gpt-oss-20b",
            format: Format::Mxfp4,
            hidden: 2880,
            inner: 2880,
            experts: 32,
            top: 4,
            group: 32,
        },
        Mixture {
            model: "gpt-oss-120b",
            format: Format::Mxfp4,
            hidden: 2880,
            inner: 2880,
            experts: 128,
            top: 4,
            group: 32,
        },
        Mixture {
            model: "qwen3-30b-a3b",
            format: Format::Bf16,
            hidden: 2048,
            inner: 768,
            experts: 128,
            top: 8,
            group: 32,
        },
        Mixture {
            model: "qwen3-30b-a3b",
            format: Format::Fp8,
            hidden: 2048,
            inner: 768,
            experts: 128,
            top: 8,
            group: 128,
        },
        Mixture {
            model: "llama-4-scout",
            format: Format::Fp8,
            hidden: 5120,
            inner: 8192,
            experts: 16,
            top: 1,
            group: 8192,
        },
        Mixture {
            model: "llama-4-scout",
            format: Format::Int4,
            hidden: 5120,
            inner: 8192,
            experts: 16,
            top: 1,
            group: 128,
        },
    ];
    let mut all = Vec::new();
    for Mixture { model, format, hidden, inner, experts, top, group } in mixtures {
        for tokens in TOKENS {
            let up = Layout { format, rows: 2 * inner, columns: hidden, group: group.min(hidden) };
            let down = Layout { format, rows: hidden, columns: inner, group: group.min(inner) };
            for (name, layout, is_up) in [("up", up, true), ("down", down, false)] {
                let name = format!("experts/{model} {format:?} {name} tokens={tokens}");
                all.push(mixture(name, layout, (tokens, experts, top), is_up));
            }
        }
    }
    for (format, group) in [(Format::Int4, 128), (Format::Fp8, 4096), (Format::Mxfp4, 32)] {
        for (rows, tokens) in ROWS.into_iter().flat_map(|rows| TOKENS.map(|tokens| (rows, tokens))) {
            all.push(dense(Layout { format, rows, columns: 4096, group }, tokens));
        }
    }
    all
}

/// Random codes with scales around 1/64, for several matrices side by side.
fn weights(device: &dyn TestDevice, layout: Layout, matrices: u64) -> (DevicePtr, DevicePtr) {
    let reserve = |bytes: u64| device.upload(&vec![0; bytes.max(16) as usize]);
    let (code_bytes, scale_bytes) = (matrices * layout.code_bytes() as u64, matrices * layout.scale_bytes() as u64);
    if layout.format == Format::Bf16 {
        return (normals_on(device, code_bytes / 2), DevicePtr::NULL);
    }
    let (codes, scales) = (reserve(code_bytes), reserve(scale_bytes));
    let value = match layout.format {
        Format::Mxfp4 => 0x7979_7979,
        _ => scale_word(1.0 / 64.0, 8),
    };
    let filled = FillBits { out: codes, words: code_bytes / 4, seed: 7 }
        .run(device.queue())
        .and_then(|()| FillWord { out: scales, words: scale_bytes / 4, value }.run(device.queue()));
    filled.unwrap_or_else(|error| panic!("{error}"));
    (codes, scales)
}

fn mixture(name: String, layout: Layout, (tokens, experts, top): (usize, usize, usize), up: bool) -> Timing {
    let slots = tokens * top;
    let matrix_bytes = (layout.code_bytes() + layout.scale_bytes()) as u64;
    // Experts that some token of many, each with `top` of all, goes to.
    let asked = experts as f64 * (1.0 - (1.0 - top as f64 / experts as f64).powi(tokens as i32));
    let width = if up { layout.rows / 2 } else { layout.rows };
    let moved = 2 * (if up { tokens } else { slots } * layout.columns + slots * width) as u64;
    Timing {
        name,
        bytes: (asked * matrix_bytes as f64) as u64 + moved,
        flops: 2 * (slots * layout.rows * layout.columns) as u64,
        prepare: Box::new(move |device| {
            let copies = ROTATED_BYTES.div_ceil(experts as u64 * matrix_bytes).max(1);
            let (codes, scales) = weights(device, layout, copies * experts as u64);
            let way = Way::experts(slots, experts);
            let (plan, sorted, items) = routed(device, (tokens, experts, top), way);
            let op = Packed {
                output: Output::Bf16,
                y: device.upload(&vec![0; 2 * slots * width]),
                x: normals_on(device, (slots * layout.columns) as u64),
                codes,
                scales,
                bias: DevicePtr::NULL,
                layout,
                activation: if up { Activation::SiluMul } else { Activation::None },
                way,
                work: Work::Experts {
                    plan,
                    slots: sorted,
                    items,
                    top: if up { top as u32 } else { 0 },
                    scatters: !up,
                    input_weights: DevicePtr::NULL,
                },
            };
            rotated(op, copies, experts)
        }),
    }
}

/// The routing of tokens with random scores.
fn routed(
    device: &dyn TestDevice,
    (tokens, experts, top): (usize, usize, usize),
    way: Way,
) -> (DevicePtr, DevicePtr, u32) {
    let size =
        RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, item_rows: way.item_rows() };
    let words = |count: u32| device.upload(&vec![0; 4 * count as usize]);
    let (plan, slots) = (words(size.words()), words(size.slots()));
    let route = Route {
        chosen: words(size.slots()),
        weights: words(size.slots()),
        slots,
        plan,
        ticket: words(1),
        scores: device.upload(&f32_bytes(&Random::new(9).normals(tokens * experts, 1.0))),
        weighting: Weighting::AmongChosen,
        size,
    };
    route.run(device.queue()).unwrap_or_else(|error| panic!("{error}"));
    (plan, slots, size.capacity())
}

fn dense(layout: Layout, tokens: usize) -> Timing {
    let matrix_bytes = (layout.code_bytes() + layout.scale_bytes()) as u64;
    Timing {
        name: format!("packed/{:?} {} x {} tokens={tokens}", layout.format, layout.rows, layout.columns),
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
                work: Work::Dense { tokens: tokens as u32 },
            };
            rotated(op, copies, 1)
        }),
    }
}

/// Each run takes the next copy of the weights.
fn rotated(op: Packed, copies: u64, matrices: usize) -> crate::Run {
    let turn = Cell::new(0);
    let (codes, scales) = (matrices * op.layout.code_bytes(), matrices * op.layout.scale_bytes());
    Box::new(move |queue| {
        turn.set((turn.get() + 1) % copies as usize);
        let scales = if op.scales.is_null() { op.scales } else { op.scales.byte_add(turn.get() * scales) };
        Packed { codes: op.codes.byte_add(turn.get() * codes), scales, ..op }.run(queue)
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
            assert!(TOKENS.iter().any(|tokens| Way::experts(4 * tokens, 32) == way), "{way:?}");
        }
    }
}
