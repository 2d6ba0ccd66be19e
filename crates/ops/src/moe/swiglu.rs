//! The gated activation of gpt-oss's experts.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::operand::{contiguous, for_rows_mut};
use crate::simd::{Level, Simd, dispatch, exp};

/// See [`super::Activation::ClampedSwiglu`].
///
/// # Errors
/// Another rank, dtype or layout, or an odd last dimension.
pub(super) fn clamped_swiglu(gate_up: &Tensor, alpha: f32, limit: f32) -> Result<Tensor> {
    gate_up.apply_op1_no_bwd(&ClampedSwiglu { alpha, limit, level: Level::detect() })
}

struct ClampedSwiglu {
    alpha: f32,
    limit: f32,
    level: Level,
}

impl CustomOp1 for ClampedSwiglu {
    fn name(&self) -> &'static str {
        "clamped_swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let gate_up = contiguous::<f32>(self.name(), "gate_up", storage, layout)?;
        let &[tokens, width] = layout.dims() else {
            bail!("clamped_swiglu: gate_up is {:?}, expected [tokens, 2 * i]", layout.shape());
        };
        if width % 2 != 0 {
            bail!("clamped_swiglu: gate_up has {width} columns, expected an even number: gate and up");
        }
        let half = width / 2;
        let mut out = vec![0.0; tokens * half];
        for_rows_mut(&mut out, half, |first, rows| {
            for (i, out) in rows.chunks_exact_mut(half).enumerate() {
                let (gate, up) = gate_up[(first + i) * width..][..width].split_at(half);
                swiglu_row(self.level, gate, up, self.alpha, self.limit, out);
            }
        });
        Ok((CpuStorage::F32(out), Shape::from((tokens, half))))
    }
}

dispatch!(fn swiglu_row(gate: &[f32], up: &[f32], alpha: f32, limit: f32, out: &mut [f32]) = swiglu_body);

/// Comparisons, not `min` and `max`, which would pass over what is not a number.
#[inline(always)]
fn swiglu_body<S: Simd>(gate: &[f32], up: &[f32], alpha: f32, limit: f32, out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        let gate = if gate > limit { limit } else { gate };
        let up = if up > limit { limit } else { up };
        let up = if up < -limit { -limit } else { up };
        *out = (up + 1.0) * (gate / (1.0 + exp::<S>(-alpha * gate)));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::Random;

    #[test]
    fn clamped_swiglu_matches_f64_at_every_level() {
        let mut random = Random::new(61);
        let (gate, up) = (random.normals(1537, 5.0), random.normals(1537, 5.0));
        for level in Level::available() {
            let mut out = vec![0.0; gate.len()];
            swiglu_row(level, &gate, &up, 1.702, 7.0, &mut out);
            for ((out, gate), up) in out.iter().zip(&gate).zip(&up) {
                let (gate, up) = (f64::from(*gate).min(7.0), f64::from(*up).clamp(-7.0, 7.0));
                let want = (up + 1.0) * gate / (1.0 + (-f64::from(1.702f32) * gate).exp());
                assert!((f64::from(*out) - want).abs() <= 3e-6 * want.abs() + 1e-9, "{level:?}: {out}, {want}");
            }
        }
    }

    #[test]
    fn limits_hold_and_nan_stays() {
        for level in Level::available() {
            let mut out = [0.0; 5];
            let (gate, up) = ([100.0, 100.0, -1e30, f32::NAN, 1.0], [100.0, -100.0, 1.0, 1.0, f32::NAN]);
            swiglu_row(level, &gate, &up, 1.702, 7.0, &mut out);
            assert!((out[0] - 56.0).abs() < 1e-3 && (out[1] + 42.0).abs() < 1e-3, "{out:?}");
            assert!(out[2] == 0.0 && out[3].is_nan() && out[4].is_nan(), "{out:?}");
        }
    }

    #[test]
    fn wrong_operands_are_refused_by_name() {
        let x = Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
        let message = |x: &Tensor| clamped_swiglu(x, 1.702, 7.0).unwrap_err().to_string();
        assert!(message(&x.t().unwrap()).contains("clamped_swiglu: gate_up"));
        assert!(message(&x.narrow(1, 0, 7).unwrap().contiguous().unwrap()).contains("even number"));
        assert!(message(&x.flatten_all().unwrap()).contains("expected [tokens, 2 * i]"));
    }
}
