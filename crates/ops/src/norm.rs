//! Root mean square layer normalisation (arXiv:1910.07467), alone and fused with the residual addition before it.
//!
//! On a GPU activations are bf16 where the text below says f32 (weights are f32), and a fused addition turns the memory of
//! `residual` into the sum, which is returned: do not read `residual` afterwards.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::operand::{Shared, contiguous, for_row_ranges, for_rows_mut};
use crate::simd::{Level, SUM_LANES, Simd, dispatch, fma, sum_lanes};

/// `x / sqrt(mean(x^2) + eps) * weight`, row by row.
///
/// `x`: f32 `[rows, h]`, `weight`: f32 `[h]`. Returns f32 `[rows, h]`. A row is a token, or one head of a token where
/// queries and keys are normalised.
///
/// # Errors
/// Another rank, dtype or layout, or a weight of another length.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::rms_norm(x, weight, eps);
    }
    x.apply_op2_no_bwd(weight, &RmsNorm { eps, level: Level::detect() })
}

/// `sum = x + residual` and `rms_norm(sum, weight, eps)`, in one pass. Returns `(normed, sum)`.
///
/// `x`, `residual`: f32 `[rows, h]`, `weight`: f32 `[h]`. Both results are f32 `[rows, h]` views of one allocation.
///
/// # Errors
/// As [`rms_norm`]; or `x` and `residual` differ in shape.
pub fn add_rms_norm(x: &Tensor, residual: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::add_rms_norm(x, None, residual, weight, eps);
    }
    let both = x.apply_op3_no_bwd(residual, weight, &AddRmsNorm { eps, level: Level::detect() })?;
    Ok((both.get(0)?, both.get(1)?))
}

/// `sum = rms_norm(x, inner) + residual` and `rms_norm(sum, weight)`: where a block's output is normed before it is added,
/// and the sum for the next block. Returns `(normed, sum)`.
///
/// `x`, `residual`: f32 `[rows, h]`, `inner`, `weight`: f32 `[h]`, both with the one `eps`.
///
/// # Errors
/// As [`add_rms_norm`].
pub fn sandwich_norm(
    x: &Tensor,
    inner: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    eps: f32,
) -> Result<(Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::add_rms_norm(x, Some(inner), residual, weight, eps);
    }
    add_rms_norm(&rms_norm(x, inner, eps)?, residual, weight, eps)
}

struct RmsNorm {
    eps: f32,
    level: Level,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, h) = row_shape("rms_norm", xl, wl)?;
        let x = contiguous::<f32>("rms_norm", "x", x, xl)?;
        let weight = contiguous::<f32>("rms_norm", "weight", w, wl)?;
        let mut out = vec![0.0; rows * h];
        for_rows_mut(&mut out, h, |first, rows| {
            for (i, out) in rows.chunks_exact_mut(h).enumerate() {
                norm_row(self.level, &x[(first + i) * h..][..h], weight, self.eps, out);
            }
        });
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }
}

struct AddRmsNorm {
    eps: f32,
    level: Level,
}

impl CustomOp3 for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    /// Returns `[2, rows, h]`: normed, then sum.
    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        residual: &CpuStorage,
        rl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (rows, h) = row_shape("add_rms_norm", xl, wl)?;
        if rl.shape() != xl.shape() {
            bail!("add_rms_norm: residual is {:?}, expected x's {:?}", rl.shape(), xl.shape());
        }
        let x = contiguous::<f32>("add_rms_norm", "x", x, xl)?;
        let residual = contiguous::<f32>("add_rms_norm", "residual", residual, rl)?;
        let weight = contiguous::<f32>("add_rms_norm", "weight", w, wl)?;
        let mut out = vec![0.0; 2 * rows * h];
        let (normed, sum) = out.split_at_mut(rows * h);
        let (normed, sum) = (Shared::new(normed), Shared::new(sum));
        for_row_ranges(rows, h, |range| {
            for row in range {
                let at = row * h..(row + 1) * h;
                // SAFETY: a row is in one range alone, and visited once.
                let (normed, sum) = unsafe { (normed.part(at.clone()), sum.part(at.clone())) };
                for ((sum, x), residual) in sum.iter_mut().zip(&x[at.clone()]).zip(&residual[at]) {
                    *sum = x + residual;
                }
                norm_row(self.level, sum, weight, self.eps, normed);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((2, rows, h))))
    }
}

fn row_shape(op: &str, x: &Layout, weight: &Layout) -> Result<(usize, usize)> {
    match (x.dims(), weight.dims()) {
        (&[rows, h], &[len]) if h == len => Ok((rows, h)),
        _ => bail!("{op}: x is {:?} and weight {:?}, expected [rows, h] and [h]", x.shape(), weight.shape()),
    }
}

dispatch!(fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_body);

#[inline(always)]
fn norm_body<S: Simd>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_of_squares::<S>(x) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(x: &[f32]) -> f32 {
    let mut lanes = [0.0; SUM_LANES];
    let (chunks, tail) = x.as_chunks::<SUM_LANES>();
    for chunk in chunks {
        for i in 0..SUM_LANES {
            lanes[i] = fma::<S>(chunk[i], chunk[i], lanes[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(tail) {
        *lane = fma::<S>(*x, *x, *lane);
    }
    sum_lanes(lanes)
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Result, Tensor, bail};
    use plimsoll_kernels::rms_norm::{AddRmsNorm, RmsNorm, SandwichNorm};

    use crate::cuda::{Cuda, address, launch_error};

    fn sizes(op: &str, x: &Tensor, weight: &Tensor) -> Result<(u32, u32)> {
        match (x.dims(), weight.dims()) {
            (&[rows, h], &[len]) if h == len => Ok((rows as u32, h as u32)),
            _ => bail!("{op}: x is {:?} and weight {:?}, expected [rows, h] and [h]", x.shape(), weight.shape()),
        }
    }

    pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        let (rows, hidden) = sizes("rms_norm", x, weight)?;
        let cuda = Cuda::of(x.device())?;
        let out = cuda.empty(x.shape(), DType::BF16)?;
        let op = RmsNorm {
            out: address("rms_norm", "out", &out, DType::BF16)?,
            x: address("rms_norm", "x", x, DType::BF16)?,
            weight: address("rms_norm", "weight", weight, DType::F32)?,
            rows,
            hidden,
            eps,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(out)
    }

    /// With `inner`, `x` is normed by it before it is added.
    pub(super) fn add_rms_norm(
        x: &Tensor,
        inner: Option<&Tensor>,
        residual: &Tensor,
        weight: &Tensor,
        eps: f32,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, hidden) = sizes("add_rms_norm", x, weight)?;
        if residual.shape() != x.shape() {
            bail!("add_rms_norm: residual is {:?}, expected x's {:?}", residual.shape(), x.shape());
        }
        let cuda = Cuda::of(x.device())?;
        let out = cuda.empty(x.shape(), DType::BF16)?;
        let normed = address("add_rms_norm", "normed", &out, DType::BF16)?;
        let branch = address("add_rms_norm", "x", x, DType::BF16)?;
        let stream = address("add_rms_norm", "residual", residual, DType::BF16)?;
        let weight = address("add_rms_norm", "weight", weight, DType::F32)?;
        let launched = match inner {
            None => AddRmsNorm { normed, residual: stream, branch, weight, rows, hidden, eps }.run(cuda.queue()),
            Some(inner) => {
                let post = address("sandwich_norm", "inner", inner, DType::F32)?;
                SandwichNorm { normed, residual: stream, branch, post, weight, rows, hidden, eps }.run(cuda.queue())
            }
        };
        launched.map_err(launch_error)?;
        Ok((out, residual.clone()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::Random;

    const EPS: f32 = 1e-5;

    fn naive(x: &[f32], weight: &[f32]) -> Vec<f64> {
        let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        x.iter().zip(weight).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect()
    }

    fn tensor(data: &[f32], shape: impl Into<Shape>) -> Tensor {
        Tensor::from_slice(data, shape, &Device::Cpu).unwrap()
    }

    fn floats(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn both_match_f64_and_each_other() {
        let mut random = Random::new(11);
        for (rows, h) in [(1, 576), (1, 3), (5, 64), (33, 640), (300, 256), (0, 16)] {
            let (x, residual, weight) =
                (random.normals(rows * h, 2.0), random.normals(rows * h, 3.0), random.normals(h, 1.0));
            let (tx, tr, tw) = (tensor(&x, (rows, h)), tensor(&residual, (rows, h)), tensor(&weight, h));
            let (normed, sum) = add_rms_norm(&tx, &tr, &tw, EPS).unwrap();
            assert_eq!((normed.dims(), sum.dims()), (&[rows, h][..], &[rows, h][..]));
            assert!(normed.is_contiguous() && sum.is_contiguous());
            let expected: Vec<f32> = x.iter().zip(&residual).map(|(x, r)| x + r).collect();
            assert_eq!(floats(&sum), expected);
            assert_eq!(floats(&normed), floats(&rms_norm(&sum, &tw, EPS).unwrap()));
            for (row, got) in expected.chunks(h).zip(floats(&normed).chunks(h)) {
                for (want, got) in naive(row, &weight).iter().zip(got) {
                    assert!((want - f64::from(*got)).abs() <= 2e-6 * want.abs(), "{got}, expected {want}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_a_batch() {
        let mut random = Random::new(12);
        let (x, weight) = (random.normals(200 * 576, 1.0), random.normals(576, 1.0));
        let w = tensor(&weight, 576);
        let batch = floats(&rms_norm(&tensor(&x, (200, 576)), &w, EPS).unwrap());
        for (row, from_batch) in x.chunks(576).zip(batch.chunks(576)) {
            assert_eq!(floats(&rms_norm(&tensor(row, (1, 576)), &w, EPS).unwrap()), from_batch);
        }
    }

    #[test]
    fn every_level_agrees() {
        let mut random = Random::new(13);
        let (x, weight) = (random.normals(1003, 1.0), random.normals(1003, 1.0));
        for level in Level::available() {
            let mut out = vec![0.0; x.len()];
            norm_row(level, &x, &weight, EPS, &mut out);
            for (want, got) in naive(&x, &weight).iter().zip(&out) {
                assert!((want - f64::from(*got)).abs() <= 2e-6 * want.abs(), "{level:?}: {got}, expected {want}");
            }
        }
    }

    #[test]
    fn wrong_operands_are_refused_by_name() {
        let x = Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
        let short = weight.narrow(0, 0, 7).unwrap();
        let message = |r: Result<Tensor>| r.unwrap_err().to_string();
        assert!(message(rms_norm(&x, &short, EPS)).contains("rms_norm: x is [2, 8] and weight [7]"));
        let transposed = Tensor::zeros((8, 2), DType::F32, &Device::Cpu).unwrap().t().unwrap();
        assert!(message(rms_norm(&transposed, &weight, EPS)).contains("not contiguous"));
        let half = weight.to_dtype(DType::BF16).unwrap();
        assert!(message(rms_norm(&x, &half, EPS)).contains("weight is BF16"));
        let other = x.narrow(0, 0, 1).unwrap();
        assert!(message(add_rms_norm(&x, &other, &weight, EPS).map(|r| r.0)).contains("residual is [1, 8]"));
    }
}
