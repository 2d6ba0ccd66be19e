//! Times of a mixture's products at the shapes of real models, each as the layer makes it: one launch, or one for the
//! experts of few positions and one for those of many.

use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation, Format, Ggml, Layout, Packed, Work};
use plimsoll_kernels::route::{Route, RoutePlanPart, RoutePlanSize, Split, Weighting};

use crate::arrays::{f32_bytes, normals_on};
use crate::packed::name as format_name;
use crate::packed::timings::{ROTATED_BYTES, rotated, weights};
use crate::{Random, TestDevice, Timing};

/// Such that each way is timed, and both at once.
const TOKENS: [usize; 5] = [1, 32, 64, 256, 4096];

struct Mixture {
    model: &'static str,
    format: Format,
    hidden: usize,
    inner: usize,
    experts: usize,
    top: usize,
    group: usize,
}

const fn gpt_oss(model: &'static str, experts: usize) -> Mixture {
    Mixture { model, format: Format::Mxfp4, hidden: 2880, inner: 2880, experts, top: 4, group: 32 }
}

const fn qwen3(format: Format, group: usize) -> Mixture {
    Mixture { model: "qwen3-30b-a3b", format, hidden: 2048, inner: 768, experts: 128, top: 8, group }
}

const fn scout(format: Format, group: usize) -> Mixture {
    Mixture { model: "llama-4-scout", format, hidden: 5120, inner: 8192, experts: 16, top: 1, group }
}

/// What the reference results are of comes first.
const MIXTURES: [Mixture; 10] = [
    gpt_oss("gpt-oss-20b", 32),
    scout(Format::Fp8, 8192),
    scout(Format::Int4, 128),
    qwen3(Format::Bf16, 128),
    gpt_oss("gpt-oss-120b", 128),
    qwen3(Format::Int4, 128),
    qwen3(Format::Fp8, 128),
    qwen3(Format::Int8, 128),
    qwen3(Format::Ggml(Ggml::Q4K), 32),
    qwen3(Format::Ggml(Ggml::Q6K), 16),
];

pub(crate) fn timings() -> Vec<Timing> {
    MIXTURES.iter().flat_map(|mixture| TOKENS.iter().flat_map(|&tokens| both(mixture, tokens))).collect()
}

fn both(mixture: &'static Mixture, tokens: usize) -> [Timing; 2] {
    [true, false].map(|is_up| timing(mixture, tokens, is_up))
}

impl Mixture {
    fn layout(&self, is_up: bool) -> Layout {
        let (rows, columns) = if is_up { (2 * self.inner, self.hidden) } else { (self.hidden, self.inner) };
        // One scale a row where the row ends before the group does.
        let group = if self.group >= columns { columns } else { self.group };
        Layout { format: self.format, rows, columns, group }
    }

    fn size(&self, tokens: usize) -> RoutePlanSize {
        let split = Split::of(tokens, self.experts, self.top);
        RoutePlanSize { tokens: tokens as u32, experts: self.experts as u32, top: self.top as u32, split }
    }
}

fn timing(mixture: &'static Mixture, tokens: usize, is_up: bool) -> Timing {
    let &Mixture { experts, top, .. } = mixture;
    let (layout, slots) = (mixture.layout(is_up), tokens * top);
    let matrix_bytes = (layout.code_bytes() + layout.scale_bytes()) as u64;
    // Experts that some token of many, each with `top` of all, goes to.
    let asked = experts as f64 * (1.0 - (1.0 - top as f64 / experts as f64).powi(tokens as i32));
    let width = if is_up { layout.rows / 2 } else { layout.rows };
    let moved = 2 * (if is_up { tokens } else { slots } * layout.columns + slots * width) as u64;
    let side = if is_up { "up" } else { "down" };
    Timing {
        name: format!("experts/{} {} {side} tokens={tokens}", mixture.model, format_name(mixture.format)),
        bytes: (asked * matrix_bytes as f64) as u64 + moved,
        flops: 2 * (slots * layout.rows * layout.columns) as u64,
        prepare: Box::new(move |device| {
            let copies = ROTATED_BYTES.div_ceil(experts as u64 * matrix_bytes).max(1);
            let (codes, scales) = weights(device, layout, copies * experts as u64);
            let size = mixture.size(tokens);
            let (plan, sorted) = routed(device, size);
            let (y, x) =
                (device.upload(&vec![0; 2 * slots * width]), normals_on(device, (slots * layout.columns) as u64));
            let op = |RoutePlanPart { way, offset, items }| Packed {
                output: Output::Bf16,
                y,
                x,
                codes,
                scales,
                bias: DevicePtr::NULL,
                layout,
                activation: if is_up { Activation::SiluMul } else { Activation::None },
                way,
                work: Work::Experts {
                    plan: plan.byte_add(4 * offset as usize),
                    slots: sorted,
                    items,
                    top: if is_up { top as u32 } else { 0 },
                    scatters: !is_up,
                    input_weights: DevicePtr::NULL,
                },
            };
            rotated(size.parts().map(op).collect(), copies, experts)
        }),
    }
}

/// The plan and the slots of tokens with random scores: even, as trained routers' are, nearly.
fn routed(device: &dyn TestDevice, size: RoutePlanSize) -> (DevicePtr, DevicePtr) {
    let words = |count: u32| device.upload(&vec![0; 4 * count as usize]);
    let (plan, slots) = (words(size.words()), words(size.slots()));
    let route = Route {
        chosen: words(size.slots()),
        weights: words(size.slots()),
        slots,
        plan,
        counts: words(size.count_words()),
        scores: device.upload(&f32_bytes(&Random::new(9).normals((size.tokens * size.experts) as usize, 1.0))),
        num_tokens: DevicePtr::NULL,
        weighting: Weighting::AmongChosen,
        size,
    };
    route.run(device.queue()).unwrap_or_else(|error| panic!("{error}"));
    (plan, slots)
}

#[cfg(test)]
mod tests {
    use plimsoll_kernels::packed::Way;

    use super::*;

    #[test]
    fn every_way_is_timed_and_both_at_once() {
        let ways = |tokens: usize| MIXTURES[0].size(tokens).parts().map(|part| part.way).collect::<Vec<_>>();
        let all: Vec<Vec<Way>> = TOKENS.into_iter().map(ways).collect();
        for wanted in [&[Way::Skinny][..], &[Way::Skinny, Way::Tiled64], &[Way::Tiled64], &[Way::Tiled128]] {
            assert!(all.iter().any(|found| found == wanted), "{wanted:?} of {all:?}");
        }
    }

    #[test]
    fn shapes_are_such_as_kernels_take() {
        for mixture in &MIXTURES {
            assert_eq!([true, false].map(|is_up| mixture.layout(is_up).check()), [Ok(()), Ok(())], "{}", mixture.model);
        }
    }
}
