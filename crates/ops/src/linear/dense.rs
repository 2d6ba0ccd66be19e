//! Linear layers on a GPU: bf16 weights, multiplied by cuBLASLt.

use candle_core::{DType, Device, Error, Result, Tensor, bail};
use half::bf16;
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::embedding::Embedding;
use plimsoll_kernels::fill::FillNormal;

use super::{RowSource, check_sources};
use crate::cuda::{Bias, Cuda, address, launch_error};
use crate::indices::TokenIds;
use crate::par::parallel_for;
use crate::quant::{GgmlType, RowFormat, check_row, dequantize_row};

/// bf16 `[out_features, in_features]` in a GPU's memory, and a bias where there is one.
#[derive(Debug, Clone)]
pub(super) struct Dense {
    weight: Tensor,
    bias: Option<Bias>,
}

impl Dense {
    /// Rounds the rows of all sources to bf16 and uploads them.
    pub(super) fn upload(sources: &[RowSource<'_>], bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let (rows, cols) = check_sources(sources)?;
        let mut host = vec![bf16::ZERO; rows * cols];
        let mut first = 0;
        for source in sources {
            widen(source, &mut host[first * cols..][..source.rows * cols])?;
            first += source.rows;
        }
        Ok(Self { weight: Tensor::from_vec(host, (rows, cols), device)?, bias: Bias::upload(bias, rows, device)? })
    }

    /// See [`super::Linear::dummy`].
    pub(super) fn dummy(parts: &[(usize, u64)], cols: usize, deviation: f32, device: &Device) -> Result<Self> {
        let cuda = Cuda::of(device)?;
        let weight = cuda.empty((parts.iter().map(|(rows, _)| rows).sum::<usize>(), cols), DType::BF16)?;
        let mut out = address("dummy", "weight", &weight, DType::BF16)?;
        for &(rows, seed) in parts {
            let fill = FillNormal { out, count: (rows * cols) as u64, seed, deviation };
            fill.run(cuda.queue()).map_err(launch_error)?;
            out = out.byte_add(rows * cols * size_of::<bf16>());
        }
        Ok(Self { weight, bias: None })
    }

    /// With a bias, which it had not.
    pub(super) fn with_bias(self, bias: Vec<f32>) -> Result<Self> {
        let bias = Bias::upload(Some(bias), self.out_features(), self.weight.device())?;
        Ok(Self { bias, ..self })
    }

    /// bf16 `[out_features, in_features]`.
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(super) fn bias(&self) -> Option<&Bias> {
        self.bias.as_ref()
    }

    pub(super) fn in_features(&self) -> usize {
        self.weight.dims()[1]
    }

    pub(super) fn out_features(&self) -> usize {
        self.weight.dims()[0]
    }

    /// `x`: bf16 `[m, in_features]`; the result is bf16 `[m, out_features]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let cuda = Cuda::of(x.device())?;
        let y = cuda.empty((x.dim(0)?, self.out_features()), DType::BF16)?;
        cuda.matmul(x, &self.weight, self.bias(), &y)?;
        Ok(y)
    }

    /// See [`super::Linear::logits`].
    pub(super) fn logits(&self, x: &Tensor, into: Option<&Tensor>) -> Result<Tensor> {
        let cuda = Cuda::of(x.device())?;
        let y = match into {
            Some(y) => y.clone(),
            None => cuda.empty((x.dim(0)?, self.out_features()), DType::F32)?,
        };
        cuda.matmul(x, &self.weight, self.bias(), &y)?;
        Ok(y)
    }

    /// See [`super::Linear::scores`].
    pub(super) fn scores(&self, x: &Tensor, into: DevicePtr) -> Result<()> {
        Cuda::of(x.device())?.matmul_to(x, &self.weight, self.bias(), into, DType::F32)
    }

    /// See [`super::Linear::embed`].
    pub(super) fn embed(&self, ids: TokenIds<'_>, scale: f32) -> Result<Tensor> {
        let Some((ids, last_tokens)) = ids.device else { bail!("embed: the token ids are not on the GPU") };
        let (tokens, hidden) = (ids.dims1()?, self.in_features());
        let cuda = Cuda::of(self.weight.device())?;
        let out = cuda.empty((tokens, hidden), DType::BF16)?;
        let op = Embedding {
            out: address("embed", "out", &out, DType::BF16)?,
            table: address("embed", "table", &self.weight, DType::BF16)?,
            ids: address("embed", "ids", ids, DType::U32)?,
            last_tokens: address("embed", "last_tokens", last_tokens, DType::U32)?,
            tokens: tokens as u32,
            hidden: hidden as u32,
            vocab: self.out_features() as u32,
            slots: last_tokens.dims1()? as u32,
            scale,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(out)
    }
}

/// A source's elements as bf16, row by row, on all threads.
///
/// # Errors
/// A row holds what is not a number.
fn widen(source: &RowSource<'_>, out: &mut [bf16]) -> Result<()> {
    let row_bytes = source.bytes.len() / source.rows.max(1);
    let is_copied = source.format == RowFormat::Ggml(GgmlType::BF16) && source.order.is_none();
    let widen_row = |stored: &[u8], out: &mut [bf16]| {
        check_row(source.format, stored).map_err(Error::msg)?;
        if is_copied {
            out.iter_mut().zip(stored.as_chunks().0).for_each(|(out, bytes)| *out = bf16::from_le_bytes(*bytes));
            return Ok(());
        }
        let mut values = vec![0f32; source.cols];
        dequantize_row(source.format, stored, &mut values)?;
        if let Some(order) = source.order {
            RowSource::put_in_order(order, &mut values);
        }
        out.iter_mut().zip(&values).for_each(|(out, value)| *out = bf16::from_f32(*value));
        Ok(())
    };
    let rows: Vec<_> = out.chunks_mut(source.cols.max(1)).map(std::sync::Mutex::new).collect();
    let failed = std::sync::Mutex::new(None);
    parallel_for(rows.len(), |row| {
        let mut out = rows[row].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let widened: Result<()> = widen_row(&source.bytes[row * row_bytes..][..row_bytes], &mut out);
        if let Err(error) = widened {
            *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
        }
    });
    match failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
