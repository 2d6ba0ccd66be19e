//! The kernels in plain Rust: what runs where there is no better, and what the others must equal to the bit.

use super::panel::{PANEL, PanelLayout, dense_element};
use super::quantize::ActBlock;
use crate::quant::GgmlType;

/// One panel of a quantized type times one tile of int8 activations: `x` is `[block][row]`, `out` `[row][32]`.
pub(super) fn int8(ty: GgmlType, panel: &[u8], x: &[ActBlock], out: &mut [[f32; PANEL]]) {
    let layout = PanelLayout::of(ty);
    let group = layout.format.group;
    out.fill([0.0; PANEL]);
    for (index, x) in x.chunks_exact(out.len()).enumerate() {
        let block = layout.block(panel, index);
        for (g, codes) in block.codes().chunks_exact(group).enumerate() {
            let scales: [(f32, f32); PANEL] = std::array::from_fn(|lane| block.scale(g, lane));
            for (x, out) in x.iter().zip(&mut *out) {
                let (neg_sum, scaled_sum) = x.sums(group, g);
                let mut dots = [layout.format.offset * neg_sum; PANEL];
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

/// Adds one dense panel (or a part of its columns) times one tile of f32 activations: `x` is rows of `stride`, of
/// which as many columns are used as the panel has; `acc` is `[row][32]`.
pub(super) fn dense(ty: GgmlType, panel: &[u8], x: &[f32], stride: usize, acc: &mut [[f32; PANEL]]) {
    let size = ty.block_bytes();
    for (col, elements) in panel.chunks_exact(PANEL * size).enumerate() {
        let weights: [f32; PANEL] = std::array::from_fn(|lane| dense_element(ty, &elements[lane * size..]));
        for (row, acc) in acc.iter_mut().enumerate() {
            let x = x[row * stride + col];
            for (acc, w) in acc.iter_mut().zip(&weights) {
                *acc = x.mul_add(*w, *acc);
            }
        }
    }
}
