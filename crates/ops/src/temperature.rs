//! Attention temperature: queries far into a sequence are made longer, so that the softmax over more keys stays as sharp
//! (arXiv:2501.19399). On a GPU queries are bf16, and are scaled where they lie.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::indices::Indices;

/// How much longer queries become with their position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// Positions to the next step. Above 0.
    pub floor_scale: f32,
    pub attn_scale: f32,
}

impl Temperature {
    /// What the query at `position` is multiplied by.
    pub fn at(&self, position: u32) -> f32 {
        ((position as f32 + 1.0) / self.floor_scale).floor().ln_1p() * self.attn_scale + 1.0
    }
}

/// `q` times [`Temperature::at`] each token's position. `q`: f32 `[tokens, heads, head_dim]`; the result is the same.
///
/// # Errors
/// Another rank or dtype, another number of positions than tokens, or a GPU.
pub fn scale_queries(q: &Tensor, positions: Indices<'_>, temperature: &Temperature) -> Result<Tensor> {
    let (tokens, _, _) = q.dims3()?;
    #[cfg(feature = "cuda")]
    if let Some(positions) = positions.device {
        return cuda::scale_queries(q, positions, temperature);
    }
    if !matches!(q.device(), Device::Cpu) || q.dtype() != DType::F32 {
        bail!("scale_queries: q is {:?}; F32 on the CPU is served: choose the CPU", q.dtype());
    }
    if positions.host.len() != tokens {
        bail!("scale_queries: {} positions for {tokens} tokens", positions.host.len());
    }
    let factors: Vec<f32> = positions.host.iter().map(|&position| temperature.at(position)).collect();
    q.broadcast_mul(&Tensor::from_vec(factors, (tokens, 1, 1), &Device::Cpu)?)
}

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::{DType, Result, Tensor, bail};
    use plimsoll_kernels::temperature::ScaleQueries;

    use super::Temperature;
    use crate::cuda::{Cuda, address, launch_error};

    pub(super) fn scale_queries(q: &Tensor, positions: &Tensor, temperature: &Temperature) -> Result<Tensor> {
        let (tokens, heads, head_dim) = q.dims3()?;
        if positions.dims() != [tokens] {
            bail!("scale_queries: positions {:?} for {tokens} tokens", positions.shape());
        }
        let op = ScaleQueries {
            q: address("scale_queries", "q", q, DType::BF16)?,
            positions: address("scale_queries", "positions", positions, DType::U32)?,
            tokens: tokens as u32,
            width: (heads * head_dim) as u32,
            floor_scale: temperature.floor_scale,
            attn_scale: temperature.attn_scale,
        };
        op.run(Cuda::of(q.device())?.queue()).map_err(launch_error)?;
        Ok(q.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_grow_in_steps_with_their_position() {
        let temperature = Temperature { floor_scale: 8.0, attn_scale: 0.5 };
        let q = Tensor::ones((4, 2, 3), DType::F32, &Device::Cpu).unwrap();
        let positions = [0u32, 6, 7, 16];
        let scaled = scale_queries(&q, positions[..].into(), &temperature).unwrap();
        let scaled: Vec<Vec<f32>> = scaled.flatten_from(1).unwrap().to_vec2().unwrap();
        for (row, want) in scaled.iter().zip([1.0, 1.0, 1.0 + 0.5 * 2f64.ln(), 1.0 + 0.5 * 3f64.ln()]) {
            assert!(row.len() == 6 && row.iter().all(|x| (f64::from(*x) - want).abs() < 1e-6), "{row:?}, {want}");
        }
    }

    #[test]
    fn wrong_operands_are_refused_by_name() {
        let temperature = Temperature { floor_scale: 8.0, attn_scale: 0.5 };
        let q = Tensor::ones((4, 2, 3), DType::F32, &Device::Cpu).unwrap();
        let message =
            |q: &Tensor, positions: &[u32]| scale_queries(q, positions.into(), &temperature).unwrap_err().to_string();
        assert!(message(&q, &[1]).contains("scale_queries: 1 positions for 4 tokens"));
        assert!(message(&q.to_dtype(DType::F64).unwrap(), &[1; 4]).contains("q is F64"));
    }
}
