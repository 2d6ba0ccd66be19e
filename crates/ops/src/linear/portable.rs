//! The kernels in plain Rust: what runs where there is no better, and what the others must equal to the bit.

use super::packing::Packing;
use super::panel::{PANEL, PanelLayout, float_element};
use super::quantize::ActBlock;

/// One panel of a packing of blocks, of which `every` are a group, times one tile of int8 activations: `x` is
/// `[block][row]`, `out` `[row][32]`.
pub(super) fn int8(packing: Packing, every: usize, panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
    let layout = PanelLayout::of(packing).with_groups(every);
    let group = layout.format.group;
    out.fill([0.0; PANEL]);
    for (index, x) in x.chunks_exact(out.len()).enumerate() {
        let block = layout.block(panel, index);
        let offsets: [i32; PANEL] = std::array::from_fn(|lane| block.offset(lane));
        for (g, codes) in block.codes().chunks_exact(group).enumerate() {
            let scales: [(f32, f32); PANEL] = std::array::from_fn(|lane| block.scale(g, lane));
            for (x, out) in x.iter().zip(&mut *out) {
                let (neg_sum, scaled_sum) = x.sums(group, g);
                let mut dots = offsets.map(|offset| offset * neg_sum);
                for (codes, &x) in codes.iter().zip(&x.codes[g * group..]) {
                    for (dot, &code) in dots.iter_mut().zip(codes) {
                        *dot += i32::from(layout.format.integer(code)) * i32::from(x);
                    }
                }
                for ((out, dot), (scale, min)) in out.iter_mut().zip(dots).zip(scales) {
                    *out = (dot as f32 * x.scale).mul_add(scale, *out);
                    if layout.format.has_min {
                        *out = min.mul_add(scaled_sum, *out);
                    }
                }
            }
        }
    }
}

/// Adds one panel (or a part of its columns, under the same scales) of a packing of floats, times one tile of f32
/// activations: `x` is rows of `stride`, of which as many columns are used as the panel has; `acc` is `[row][32]`.
pub(super) fn dense(
    packing: Packing,
    panel: &[u8],
    scales: &[f32; PANEL],
    x: &[f32],
    stride: usize,
    acc: &mut [[f32; PANEL]],
) {
    let size = packing.element_bytes();
    for (col, elements) in panel.chunks_exact(PANEL * size).enumerate() {
        let weights: [f32; PANEL] =
            std::array::from_fn(|lane| float_element(packing, &elements[lane * size..], scales[lane]));
        for (row, acc) in acc.iter_mut().enumerate() {
            let x = x[row * stride + col];
            for (acc, w) in acc.iter_mut().zip(&weights) {
                *acc = x.mul_add(*w, *acc);
            }
        }
    }
}
