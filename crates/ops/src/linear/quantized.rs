//! Linear layers on a GPU whose weights stay as they are stored: codes and scales, decoded where they are multiplied.

use candle_core::{DType, Device, Result, Tensor, bail};
use plimsoll_kernels::fill::{FillBits, FillWord};
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation, Format, Layout, Packed, Way, Work, scale_word};
use plimsoll_kernels::{DevicePtr, Queue};

use super::dense::upload_bias;
use super::footprint;
use super::relay::Laid;
use crate::cuda::{Cuda, address, launch_error};
use crate::quant::RowFormat;

/// A matrix in a GPU's memory as a kernel reads it, and its bias.
#[derive(Debug, Clone)]
pub(super) struct Quantized {
    layout: Layout,
    /// u8
    codes: Tensor,
    /// u8
    scales: Tensor,
    /// f32 `[out_features]`
    bias: Option<Tensor>,
}

impl Quantized {
    pub(super) fn upload(laid: Laid, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let Laid { layout, codes, scales } = laid;
        let bytes = |bytes: Vec<u8>| {
            let len = bytes.len();
            Tensor::from_vec(bytes, len, device)
        };
        let bias = upload_bias(bias, layout.rows, device)?;
        Ok(Self { layout, codes: bytes(codes)?, scales: bytes(scales)?, bias })
    }

    /// Random codes, made on the GPU, under one scale: numbers of about this deviation. `None` where no kernel reads the
    /// format.
    pub(super) fn dummy(
        format: RowFormat,
        (rows, columns): (usize, usize),
        (seed, deviation): (u64, f32),
        device: &Device,
    ) -> Result<Option<Self>> {
        let Some(layout) = footprint::layout(format, rows, columns) else { return Ok(None) };
        let cuda = Cuda::of(device)?;
        let codes = cuda.empty(layout.code_bytes(), DType::U8)?;
        let scales = cuda.empty(layout.scale_bytes(), DType::U8)?;
        let words = |bytes: usize| (bytes / size_of::<u32>()) as u64;
        let random =
            FillBits { out: address("dummy", "codes", &codes, DType::U8)?, words: words(layout.code_bytes()), seed };
        let same = FillWord {
            out: address("dummy", "scales", &scales, DType::U8)?,
            words: words(layout.scale_bytes()),
            value: dummy_scale(layout.format, deviation),
        };
        random.run(cuda.queue()).and_then(|()| same.run(cuda.queue())).map_err(launch_error)?;
        Ok(Some(Self { layout, codes, scales, bias: None }))
    }

    /// With a bias, which it had not.
    pub(super) fn with_bias(self, bias: Vec<f32>) -> Result<Self> {
        let bias = upload_bias(Some(bias), self.layout.rows, self.codes.device())?;
        Ok(Self { bias, ..self })
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn codes(&self) -> &Tensor {
        &self.codes
    }

    pub(super) fn scales(&self) -> &Tensor {
        &self.scales
    }

    pub(super) fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// `x`: bf16 `[m, in_features]`; the result is `[m, out_features]`, of `dtype`: bf16 or f32.
    pub(super) fn forward(&self, x: &Tensor, dtype: DType, into: Option<&Tensor>) -> Result<Tensor> {
        let (tokens, columns) = x.dims2()?;
        if columns != self.layout.columns {
            bail!("linear: {columns} input features, expected {}", self.layout.columns);
        }
        let cuda = Cuda::of(x.device())?;
        let y = match into {
            Some(y) => y.clone(),
            None => cuda.empty((tokens, self.layout.rows), dtype)?,
        };
        if y.dims() != [tokens, self.layout.rows] {
            bail!("linear: y is {:?}, expected [{tokens}, {}]", y.shape(), self.layout.rows);
        }
        let op = Packed {
            y: address("linear", "y", &y, dtype)?,
            output: if dtype == DType::F32 { Output::F32 } else { Output::Bf16 },
            x: address("linear", "x", x, DType::BF16)?,
            codes: address("linear", "codes", &self.codes, DType::U8)?,
            scales: address("linear", "scales", &self.scales, DType::U8)?,
            bias: match &self.bias {
                Some(bias) => address("linear", "bias", bias, DType::F32)?,
                None => DevicePtr::NULL,
            },
            layout: self.layout,
            activation: Activation::None,
            way: Way::dense(tokens, self.layout.rows, cuda.queue().multiprocessors()),
            work: Work::Dense { tokens: tokens as u32 },
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(y)
    }
}

/// What makes uniformly drawn codes numbers of this deviation: the codes' own are 2.93 (E2M1), 4.64 and 73.9 (integers
/// around their middle) and 108 (e4m3).
fn dummy_scale(format: Format, deviation: f32) -> u32 {
    match format {
        Format::Mxfp4 => {
            let exponent = (127.0 + (deviation / 2.93).log2().round()).clamp(1.0, 254.0) as u32;
            exponent * 0x0101_0101
        }
        Format::Int4 => scale_word(deviation / 4.64, 8),
        Format::Int8 => scale_word(deviation / 73.9, 128),
        Format::Fp8 | Format::Bf16 => scale_word(deviation / 108.0, 0),
    }
}
