//! Gated activations of feed-forward blocks: `act(gate) * up`, over the packed output of a merged gate-up projection. On a
//! GPU they are bf16 where the text below says f32.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::operand::{contiguous, for_rows_mut};
use crate::simd::{Level, Simd, dispatch, exp, fma};

/// SwiGLU: `silu(gate) * up` with `silu(x) = x / (1 + e^-x)` (arXiv:2002.05202).
///
/// `gate_up`: f32 `[tokens, 2 * i]`, the gate's columns and then up's. Returns f32 `[tokens, i]`.
///
/// # Errors
/// Another rank, dtype or layout, or an odd last dimension.
pub fn silu_mul(gate_up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gate_up.device().is_cuda() {
        return cuda::gated_mul(gate_up, Kind::Silu);
    }
    gate_up.apply_op1_no_bwd(&GatedMul { name: "silu_mul", kind: Kind::Silu, level: Level::detect() })
}

/// GeGLU with the tanh form of GELU: `gate / 2 * (1 + tanh(sqrt(2/pi) * (gate + 0.044715 gate^3))) * up`
/// (arXiv:1606.08415, arXiv:2002.05202). Shapes and errors as [`silu_mul`].
///
/// # Errors
/// As [`silu_mul`].
pub fn gelu_tanh_mul(gate_up: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gate_up.device().is_cuda() {
        return cuda::gated_mul(gate_up, Kind::GeluTanh);
    }
    gate_up.apply_op1_no_bwd(&GatedMul { name: "gelu_tanh_mul", kind: Kind::GeluTanh, level: Level::detect() })
}

/// `cap * tanh(x / cap)`, element by element: what keeps some models' logits within `-cap..cap`. Any shape, f32. On a
/// GPU in the memory of `x`.
///
/// # Errors
/// A device failure.
pub fn softcap(x: &Tensor, cap: f32) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        return cuda::softcap(x, cap);
    }
    let cap = f64::from(cap);
    (x / cap)?.tanh()? * cap
}

#[derive(Clone, Copy)]
enum Kind {
    Silu,
    GeluTanh,
}

struct GatedMul {
    name: &'static str,
    kind: Kind,
    level: Level,
}

impl CustomOp1 for GatedMul {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let gate_up = contiguous::<f32>(self.name, "gate_up", storage, layout)?;
        let &[tokens, width] = layout.dims() else {
            bail!("{}: gate_up is {:?}, expected [tokens, 2 * i]", self.name, layout.shape());
        };
        if width % 2 != 0 {
            bail!("{}: gate_up has {width} columns, expected an even number: gate and up", self.name);
        }
        let half = width / 2;
        let mut out = vec![0.0; tokens * half];
        for_rows_mut(&mut out, half, |first, rows| {
            for (i, out) in rows.chunks_exact_mut(half).enumerate() {
                let (gate, up) = gate_up[(first + i) * width..][..width].split_at(half);
                match self.kind {
                    Kind::Silu => silu_row(self.level, gate, up, out),
                    Kind::GeluTanh => gelu_tanh_row(self.level, gate, up, out),
                }
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((tokens, half))))
    }
}

dispatch!(fn silu_row(gate: &[f32], up: &[f32], out: &mut [f32]) = silu_body);
dispatch!(fn gelu_tanh_row(gate: &[f32], up: &[f32], out: &mut [f32]) = gelu_tanh_body);

#[inline(always)]
fn silu_body<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp::<S>(-gate)) * up;
    }
}

/// `(1 + tanh(u)) / 2` is the logistic function of `2u`, which has no cancellation for negative `u`.
#[inline(always)]
fn gelu_tanh_body<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    const SCALE: f32 = -2.0 * std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        let minus_2u = SCALE * gate * fma::<S>(0.044715 * gate, *gate, 1.0);
        *out = gate / (1.0 + exp::<S>(minus_2u)) * up;
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Result, Tensor, bail};
    use plimsoll_kernels::activation::{Activation, GatedMul};
    use plimsoll_kernels::logits::Softcap;

    use super::Kind;
    use crate::cuda::{Cuda, address, launch_error};

    pub(super) fn gated_mul(gate_up: &Tensor, kind: Kind) -> Result<Tensor> {
        let (tokens, width) = gate_up.dims2()?;
        if width % 2 != 0 {
            bail!("gate_up has {width} columns, expected an even number: gate and up");
        }
        let cuda = Cuda::of(gate_up.device())?;
        let out = cuda.empty((tokens, width / 2), DType::BF16)?;
        let op = GatedMul {
            activation: match kind {
                Kind::Silu => Activation::Silu,
                Kind::GeluTanh => Activation::GeluTanh,
            },
            out: address("gated_mul", "out", &out, DType::BF16)?,
            gate_up: address("gated_mul", "gate_up", gate_up, DType::BF16)?,
            tokens: tokens as u32,
            width: (width / 2) as u32,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(out)
    }

    pub(super) fn softcap(x: &Tensor, cap: f32) -> Result<Tensor> {
        let cuda = Cuda::of(x.device())?;
        let logits = address("softcap", "x", x, DType::F32)?;
        Softcap { logits, count: x.elem_count() as u64, cap }.run(cuda.queue()).map_err(launch_error)?;
        Ok(x.clone())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::Random;

    fn check(op: fn(&Tensor) -> Result<Tensor>, exact: fn(f64) -> f64, tolerance: f64) {
        let mut random = Random::new(7);
        for (tokens, half) in [(1, 5), (3, 64), (2, 1537), (40, 2048), (0, 8)] {
            let input = random.normals(tokens * 2 * half, 4.0);
            let x = Tensor::from_slice(&input, (tokens, 2 * half), &Device::Cpu).unwrap();
            let y = op(&x).unwrap();
            assert_eq!(y.dims(), [tokens, half]);
            let y = y.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (i, y) in y.iter().enumerate() {
                let at = i / half * 2 * half + i % half;
                let want = exact(f64::from(input[at])) * f64::from(input[at + half]);
                let error = (f64::from(*y) - want).abs();
                assert!(error <= tolerance * want.abs() + 1e-30, "{tokens}x{half} at {i}: {y}, expected {want}");
            }
        }
    }

    #[test]
    fn silu_matches_f64() {
        check(silu_mul, |x| x / (1.0 + (-x).exp()), 1e-6);
    }

    #[test]
    fn gelu_tanh_matches_f64() {
        let exact = |x: f64| {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            // The same function as 0.5 x (1 + tanh u), in the form that keeps its digits.
            x / (1.0 + (-2.0 * u).exp())
        };
        // In the tail the exponential multiplies the rounding of its argument, which is up to 86.
        check(gelu_tanh_mul, exact, 2e-5);
    }

    #[test]
    fn every_level_agrees() {
        let mut random = Random::new(3);
        let (gate, up) = (random.normals(1001, 3.0), random.normals(1001, 3.0));
        let run = |level, row: fn(Level, &[f32], &[f32], &mut [f32])| {
            let mut out = vec![0.0; gate.len()];
            row(level, &gate, &up, &mut out);
            out
        };
        for row in [silu_row, gelu_tanh_row] {
            let portable = run(Level::Portable, row);
            for level in Level::available() {
                for (a, b) in run(level, row).iter().zip(&portable) {
                    assert!((a - b).abs() <= 2e-5 * b.abs(), "{level:?}: {a}, portable {b}");
                }
            }
        }
    }

    #[test]
    fn extremes_saturate_and_nan_stays() {
        let gate = [100.0f32, -100.0, -1e30, f32::NAN];
        let mut out = [0.0; 4];
        for level in Level::available() {
            for row in [silu_row, gelu_tanh_row] {
                row(level, &gate, &[1.0; 4], &mut out);
                assert_eq!(out[0], 100.0);
                assert!(out[1].abs() < 1e-37 && out[2] == 0.0 && out[3].is_nan(), "{out:?}");
            }
        }
    }

    #[test]
    fn wrong_operands_are_refused_by_name() {
        let x = Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
        let message = |x: &Tensor| silu_mul(x).unwrap_err().to_string();
        assert!(message(&x.t().unwrap()).contains("silu_mul: gate_up"));
        assert!(message(&x.to_dtype(DType::F16).unwrap()).contains("silu_mul: gate_up is F16"));
        assert!(message(&x.narrow(1, 0, 7).unwrap().contiguous().unwrap()).contains("even number"));
        assert!(message(&x.flatten_all().unwrap()).contains("expected [tokens, 2 * i]"));
    }
}
