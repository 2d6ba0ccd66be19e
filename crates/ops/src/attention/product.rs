//! The small matrix product that scores and values are made with.

use std::ops::Range;

use crate::simd::{SUM_LANES, Simd, dispatch};

dispatch! {
    /// `out[r][c] += sum over k in steps of a[r][k] * b[k][c]`, `k` rising, one multiply-add each: an element's bits do
    /// not depend on how many rows there are. `a` has rows of `stride`, `b` and `out` of `cols`, a multiple of 16.
    pub(super) fn mul_acc(a: &[f32], stride: usize, b: &[f32], steps: Range<usize>, out: &mut [f32], cols: usize) = mul_acc_body
}

#[inline(always)]
fn mul_acc_body<S: Simd>(a: &[f32], stride: usize, b: &[f32], steps: Range<usize>, out: &mut [f32], cols: usize) {
    let rows = out.len() / cols;
    assert!(cols.is_multiple_of(SUM_LANES) && out.len() == rows * cols && b.len() >= steps.end * cols);
    assert!(rows == 0 || (steps.end <= stride && a.len() >= (rows - 1) * stride + steps.end));
    let mut row = 0;
    while row < rows {
        let height = (rows - row).min(4);
        let mut col = 0;
        while col < cols {
            let wide = S::TILE_VECTORS * S::LANES;
            // Each size is compiled for itself, with the tile of `out` in registers.
            // SAFETY: the assertions bound every row, column and step; the level is the dispatcher's.
            unsafe {
                let (a, b) = (a.as_ptr().add(row * stride), b.as_ptr().add(col));
                let out = out.as_mut_ptr().add(row * cols + col);
                let args = (a, stride, b, steps.clone(), out, cols);
                if S::TILE_VECTORS == 4 && col + wide <= cols {
                    by_height::<S, 4>(height, args);
                    col += wide;
                } else if col + 2 * S::LANES <= cols {
                    by_height::<S, 2>(height, args);
                    col += 2 * S::LANES;
                } else {
                    by_height::<S, 1>(height, args);
                    col += S::LANES;
                }
            }
        }
        row += height;
    }
}

/// `a` and its stride, `b`, the steps, `out`, and the stride of `b` and `out`.
type TileArgs = (*const f32, usize, *const f32, Range<usize>, *mut f32, usize);

#[inline(always)]
unsafe fn by_height<S: Simd, const C: usize>(height: usize, args: TileArgs) {
    // SAFETY: the caller's word.
    unsafe {
        match height {
            1 => register_tile::<S, 1, C>(args),
            2 => register_tile::<S, 2, C>(args),
            3 => register_tile::<S, 3, C>(args),
            _ => register_tile::<S, 4, C>(args),
        }
    }
}

/// # Safety
/// `R` rows of `a` with `steps.end` elements, `steps.end` rows of `b` and `R` of `out` with `C` vectors are in bounds.
#[inline(always)]
unsafe fn register_tile<S: Simd, const R: usize, const C: usize>((a, stride, b, steps, out, cols): TileArgs) {
    // SAFETY: the caller's word.
    unsafe {
        let mut acc = [[S::splat(0.0); C]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (c, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(out.add(r * cols + c * S::LANES));
            }
        }
        for k in steps {
            let mut row = [S::splat(0.0); C];
            for (c, row) in row.iter_mut().enumerate() {
                *row = S::load(b.add(k * cols + c * S::LANES));
            }
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = S::splat(*a.add(r * stride + k));
                for (acc, row) in acc.iter_mut().zip(row) {
                    *acc = S::mul_add(x, row, *acc);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (c, acc) in acc.into_iter().enumerate() {
                S::store(acc, out.add(r * cols + c * S::LANES));
            }
        }
    }
}
