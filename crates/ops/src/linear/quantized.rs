//! Linear layers on a GPU whose weights stay as they are stored: codes and scales, decoded where they are multiplied.

use candle_core::{DType, Device, Result, Tensor, bail};
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::fill::{FillBits, FillWord};
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation, Format, Layout, Packed, Way, Work, scale_word};

use super::relay::Laid;
use super::{OnGpu, footprint};
use crate::cuda::{Cuda, address, launch_error, upload_bias};
use crate::quant::RowFormat;

/// A matrix in a GPU's memory as a kernel reads it, and its bias.
#[derive(Debug, Clone)]
pub(super) struct Quantized {
    layout: Layout,
    /// u8
    codes: Tensor,
    /// u8
    scales: Tensor,
    /// f32 `[rows]`
    bias: Option<Tensor>,
}

impl Quantized {
    /// Of a matrix whose columns are in order.
    pub(super) fn upload(laid: Laid, bias: Option<Vec<f32>>, device: &Device) -> Result<Self> {
        let Laid { layout, codes, mut scales, order: _ } = laid;
        // The driver has no allocations of nothing, which is what bf16 has.
        scales.resize(scales.len().max(16), 0);
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
        let Some(scale) = dummy_scale(layout.format, deviation) else { return Ok(None) };
        let cuda = Cuda::of(device)?;
        let codes = cuda.empty(layout.code_bytes(), DType::U8)?;
        let scales = cuda.empty(layout.scale_bytes(), DType::U8)?;
        let words = |bytes: usize| (bytes / size_of::<u32>()) as u64;
        let random = FillBits {
            out: address("dummy", "codes", &codes, DType::U8)?,
            words: words(layout.code_bytes()),
            seed,
            keep: dummy_bits(layout.format),
        };
        let same = FillWord {
            out: address("dummy", "scales", &scales, DType::U8)?,
            words: words(layout.scale_bytes()),
            value: scale,
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

    /// Bytes of codes and scales.
    pub(super) fn packed_bytes(&self) -> usize {
        self.layout.code_bytes() + self.layout.scale_bytes()
    }

    pub(super) fn codes(&self) -> &Tensor {
        &self.codes
    }

    pub(super) fn scales(&self) -> &Tensor {
        &self.scales
    }

    pub(super) fn on_gpu(&self) -> OnGpu<'_> {
        OnGpu { layout: self.layout, codes: &self.codes, scales: Some(&self.scales), bias: self.bias() }
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
        self.forward_to(x, (address("linear", "y", &y, dtype)?, dtype), self.layout.rows)?;
        Ok(y)
    }

    /// As [`Quantized::forward`], to memory in which rows of y are `stride` elements apart.
    pub(super) fn forward_to(&self, x: &Tensor, (y, dtype): (DevicePtr, DType), stride: usize) -> Result<()> {
        let tokens = x.dim(0)?;
        let op = Packed {
            y,
            output: if dtype == DType::F32 { Output::F32 } else { Output::Bf16 },
            x: address("linear", "x", x, DType::BF16)?,
            codes: address("linear", "codes", &self.codes, DType::U8)?,
            scales: address("linear", "scales", &self.scales, DType::U8)?,
            bias: self.bias().map_or(Ok(DevicePtr::NULL), |bias| address("linear", "bias", bias, DType::F32))?,
            layout: self.layout,
            activation: Activation::None,
            way: Way::Skinny, // or another
            work: Work::Dense { tokens: tokens as u32, stride: stride as u32 },
        };
        Cuda::of(x.device())?.multiply_packed(op, tokens)
    }
}

/// The bits of dummy codes that are random: all, but for the lowest of e4m3, without which no code is a NaN.
fn dummy_bits(format: Format) -> u32 {
    if format == Format::Fp8 { 0xFEFE_FEFE } else { u32::MAX }
}

/// What makes uniformly drawn codes numbers of this deviation: the codes' own are 2.93 (E2M1), 4.64 and 73.9 (integers
/// around their middle) and 104 (e4m3 without its lowest bit). Nobody asks for GGML's blocks.
fn dummy_scale(format: Format, deviation: f32) -> Option<u32> {
    Some(match format {
        Format::Mxfp4 => {
            let exponent = (127.0 + (deviation / 2.93).log2().round()).clamp(1.0, 254.0) as u32;
            exponent * 0x0101_0101
        }
        Format::Int4 => scale_word(deviation / 4.64, 8),
        Format::Int8 => scale_word(deviation / 73.9, 128),
        Format::Fp8 => scale_word(deviation / 104.0, 0),
        Format::Bf16 | Format::Ggml(_) => return None,
    })
}
