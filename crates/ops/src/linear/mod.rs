//! Linear layers: `y = x W^T (+ b)` for weights in any format of [`crate::quant`].
//!
//! On a GPU activations are bf16. Weights stay packed where a kernel reads their format (`quantized`, `relay`), and are
//! bf16 where none does (`dense`); rows of several formats are as many matrices (`parts`); where that is asked for, FP8
//! weights meet FP8 activations (`fp8`). On the CPU:
//!
//! Weights are repacked once, at load, into panels of 32 output rows (`panel`), so that one vector instruction does 16
//! outputs. A product runs a kernel per (panel, tile of rows of `x`), chosen by what the CPU has (`isa`): quantized
//! weights against `x` quantized to int8 per block of 32 (`quantize`), or everything in f32.
//!
//! Every kernel adds up an output in the same order with the same roundings, whatever the tile and the instruction set:
//! a row's outputs do not depend, to the bit, on the other rows of the batch or on the machine.
//!
//! It must never know what the rows mean: merging q, k and v is the caller's business.
//!
//! Measured on one core of a Zen 5 AMD EPYC (AVX-512 VNNI at 3.7 GHz, 2026-11-21, CPU time, best of 25) for all linear
//! layers of SmolLM2-135M in Q4_1 with the Q8_0 head, 134.5 M weights in 96.5 MB, read from memory:
//!
//! | rows | ms | of the machine's ceiling |
//! |---|---|---|
//! | 1 | 3.1 | 31 GB/s: all that both cores together read |
//! | 8 | 4.6 | 21 GB/s, 470 GOP/s |
//! | 32 | 15.9 | 540 GOP/s of 967 in registers |
//! | 128 | 61 | 560 GOP/s |
//!
//! One matrix in the cache reaches 580 to 665 GOP/s from 8 rows on; the scales, in f32, take about a third of the
//! multipliers' time. On two cores, `gate_up` at 32 rows did 1,090 GOP/s.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(feature = "cuda")]
mod dense;
mod footprint;
#[cfg(feature = "cuda")]
mod fp8;
mod isa;
mod packing;
mod panel;
#[cfg(feature = "cuda")]
mod parts;
mod portable;
mod product;
mod quantize;
#[cfg(feature = "cuda")]
mod quantized;
#[cfg(any(feature = "cuda", test))]
mod relay;
#[cfg(test)]
mod tests;

use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};
#[cfg(feature = "cuda")]
use plimsoll_kernels::DevicePtr;
#[cfg(feature = "cuda")]
use plimsoll_kernels::packed::{Format, Layout as Packing};

pub use self::footprint::{cpu_bytes, gpu_bytes, gpu_bytes_alike};
#[cfg(feature = "cuda")]
use crate::cuda::Bias;
use crate::indices::TokenIds;
use crate::quant::{RowFormat, check_row};
use isa::Isa;
use panel::Section;

/// How products with quantized weights are computed. Dense weights (F32, F16, BF16) are always multiplied in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// `x` is quantized to int8 per block of 32 and multiplied in integers: fast. The error of an output is at most
    /// half a step of each block's scale (1/254 of its largest element) times the weights' absolute values.
    Int8,
    /// The weights are dequantized and multiplied in f32: slow, and exact to the checkpoint up to f32 rounding.
    F32,
}

/// Where the weights of a model's linear layers live, and how products with them are computed.
#[derive(Debug, Clone)]
pub enum Placement {
    Cpu(Activations),
    /// A GPU that [`crate::gpu::open`] gave.
    Gpu(Device),
}

impl From<Activations> for Placement {
    fn from(activations: Activations) -> Self {
        Self::Cpu(activations)
    }
}

impl Placement {
    /// Where tensors that go with the layers belong.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            Self::Gpu(device) => device.clone(),
        }
    }
}

/// Some consecutive output rows of a [`Linear`], row-major.
#[derive(Debug, Clone, Copy)]
pub struct RowSource<'a> {
    format: RowFormat,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
    order: Option<&'a [u32]>,
}

impl<'a> RowSource<'a> {
    /// `rows` (output features) rows of [`RowFormat::row_bytes`]`(cols)` bytes, of any alignment. `cols`, the input
    /// features, must be the same in all sources of a [`Linear`].
    pub fn new(format: impl Into<RowFormat>, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        Self { format: format.into(), rows, cols, bytes, order: None }
    }

    /// Of rows whose columns are stored in another order: `order[i]` is the input feature of stored column `i`.
    pub fn in_order(self, order: Option<&'a [u32]>) -> Self {
        Self { order, ..self }
    }

    /// Looks for what makes the rows no matrix, whatever they hold.
    ///
    /// # Errors
    /// The bytes are not those of the rows, there are no columns, or the order is not one of the columns.
    pub fn check(&self) -> Result<()> {
        let &Self { format, rows, cols, bytes, .. } = self;
        let row_bytes = format.row_bytes(cols);
        if row_bytes.and_then(|row| row.checked_mul(rows)) != Some(bytes.len()) {
            bail!(
                "{} bytes are not {rows} rows of {cols} {format} elements: the tensor is cut short or mislabelled",
                bytes.len(),
            );
        }
        // Rows are bounded by the bytes just checked, but for rows of no columns.
        let Some(1..) = row_bytes else { bail!("a linear layer of {rows} rows and {cols} columns is not possible") };
        if !self.order.is_none_or(|order| is_permutation(order, cols)) {
            bail!("the columns' order does not name each of {cols} once");
        }
        Ok(())
    }

    /// The first row that holds what is not a number, which no layer can be made of; and what is wrong with it. For sources
    /// that pass [`RowSource::check`].
    pub fn faulty_row(&self) -> Option<(usize, String)> {
        let fault = |(index, row)| Some((index, check_row(self.format, row).err()?));
        self.stored_rows().enumerate().find_map(fault)
    }

    /// Each row's bytes.
    fn stored_rows(&self) -> std::slice::ChunksExact<'a, u8> {
        self.bytes.chunks_exact((self.bytes.len() / self.rows.max(1)).max(1))
    }

    /// Puts a row as it is stored into the order of the input features.
    fn put_in_order(order: &[u32], row: &mut [f32]) {
        let stored = row.to_vec();
        order.iter().zip(stored).for_each(|(&col, value)| row[col as usize] = value);
    }
}

fn is_permutation(order: &[u32], len: usize) -> bool {
    let mut seen = vec![false; len];
    let fresh = |&col: &u32| seen.get_mut(col as usize).is_some_and(|seen| !std::mem::replace(seen, true));
    order.len() == len && order.iter().all(fresh)
}

/// An `[out_features, in_features]` matrix with an optional bias. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Linear {
    weights: Form,
}

#[derive(Debug, Clone)]
enum Form {
    Packed(Arc<Weights>),
    #[cfg(feature = "cuda")]
    Dense(dense::Dense),
    #[cfg(feature = "cuda")]
    Quantized(quantized::Quantized),
    #[cfg(feature = "cuda")]
    Parts(parts::Parts),
    #[cfg(feature = "cuda")]
    Fp8(fp8::Fp8),
}

/// A matrix in a GPU's memory.
#[cfg(feature = "cuda")]
pub(crate) struct OnGpu<'a> {
    pub(crate) layout: Packing,
    /// bf16 `[rows, columns]`, or u8 as the layout says.
    pub(crate) codes: &'a Tensor,
    /// u8
    pub(crate) scales: Option<&'a Tensor>,
    /// f32 `[rows]`
    pub(crate) bias: Option<&'a Tensor>,
}

#[derive(Debug)]
struct Weights {
    in_features: usize,
    out_features: usize,
    /// One a source, in the order of their rows.
    sections: Vec<Section>,
    /// Orders of the input features in which sections are stored, each once.
    orders: Vec<Vec<u32>>,
    bias: Option<Vec<f32>>,
    activations: Activations,
}

impl Linear {
    /// Takes the rows of all sources, one after the other, as one matrix.
    ///
    /// # Errors
    /// As [`Linear::pack`], or the GPU is out of memory.
    pub fn load(sources: &[RowSource<'_>], bias: Option<Vec<f32>>, placement: &Placement) -> Result<Linear> {
        match placement {
            Placement::Cpu(activations) => Self::pack(sources, bias, *activations),
            #[cfg(feature = "cuda")]
            Placement::Gpu(device) => match relay::lay(sources)? {
                Some(laid) if laid.len() > 1 || laid[0].order.is_some() => {
                    Ok(Self { weights: Form::Parts(parts::Parts::upload(laid, bias, device)?) })
                }
                laid => Self::upload(laid.and_then(|mut laid| laid.pop()), sources, bias, device),
            },
            #[cfg(not(feature = "cuda"))]
            Placement::Gpu(_) => bail!("this program was built without CUDA"),
        }
    }

    /// As [`Linear::load`], but on a GPU one matrix, as kernels for experts read it: bf16 where the sources' formats or the
    /// orders of their columns differ.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_alike(sources: &[RowSource<'_>], bias: Option<Vec<f32>>, placement: &Placement) -> Result<Linear> {
        match placement {
            #[cfg(feature = "cuda")]
            Placement::Gpu(device) => Self::upload(relay::lay_alike(sources)?, sources, bias, device),
            _ => Self::load(sources, bias, placement),
        }
    }

    /// What was laid, or else the sources as bf16.
    #[cfg(feature = "cuda")]
    fn upload(
        laid: Option<relay::Laid>,
        sources: &[RowSource<'_>],
        bias: Option<Vec<f32>>,
        device: &Device,
    ) -> Result<Linear> {
        let weights = match laid {
            Some(laid) => Form::Quantized(quantized::Quantized::upload(laid, bias, device)?),
            None => Form::Dense(dense::Dense::upload(sources, bias, device)?),
        };
        Ok(Self { weights })
    }

    /// As [`Linear::load`], but on a GPU bf16 in whatever format the rows are: for an embedding or a router, whose kernels
    /// read numbers alone.
    ///
    /// # Errors
    /// As [`Linear::load`].
    pub fn load_widened(sources: &[RowSource<'_>], bias: Option<Vec<f32>>, placement: &Placement) -> Result<Linear> {
        match placement {
            #[cfg(feature = "cuda")]
            Placement::Gpu(device) => Ok(Self { weights: Form::Dense(dense::Dense::upload(sources, bias, device)?) }),
            _ => Self::load(sources, bias, placement),
        }
    }

    /// Random weights on a GPU, bf16, made there: nearly normal, of mean 0 and this standard deviation. Each part is so
    /// many rows, a function of its seed.
    ///
    /// # Errors
    /// `device` is no opened GPU, or is out of memory.
    #[cfg(feature = "cuda")]
    pub fn dummy(parts: &[(usize, u64)], in_features: usize, deviation: f32, device: &Device) -> Result<Linear> {
        Ok(Self { weights: Form::Dense(dense::Dense::dummy(parts, in_features, deviation, device)?) })
    }

    /// Random weights on a GPU in a format of which kernels read the codes, made there: uniform codes under one scale,
    /// numbers of mean 0 and about this deviation. `None` where no kernel reads the format.
    ///
    /// # Errors
    /// As [`Linear::dummy`].
    #[cfg(feature = "cuda")]
    pub fn dummy_quantized(
        format: RowFormat,
        [rows, in_features]: [usize; 2],
        seed: u64,
        deviation: f32,
        device: &Device,
    ) -> Result<Option<Linear>> {
        let made = quantized::Quantized::dummy(format, (rows, in_features), (seed, deviation), device)?;
        Ok(made.map(|quantized| Self { weights: Form::Quantized(quantized) }))
    }

    /// As in a build with CUDA; in this one there is no GPU.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "cuda"))]
    pub fn dummy_quantized(_: RowFormat, _: [usize; 2], _: u64, _: f32, _: &Device) -> Result<Option<Linear>> {
        bail!("this program was built without CUDA")
    }

    /// Gives dummy weights on a GPU a bias, `[out_features]`.
    ///
    /// # Errors
    /// Weights of another kind, a bias of another length, or the GPU is out of memory.
    pub fn with_bias(self, bias: Vec<f32>) -> Result<Linear> {
        match self.weights {
            Form::Packed(_) => bail!("a layer of {} numbers is packed with its bias or without one", bias.len()),
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => Ok(Self { weights: Form::Dense(dense.with_bias(bias)?) }),
            #[cfg(feature = "cuda")]
            Form::Quantized(quantized) => Ok(Self { weights: Form::Quantized(quantized.with_bias(bias)?) }),
            #[cfg(feature = "cuda")]
            Form::Parts(_) => bail!("a layer of several parts has its bias already, or has none"),
            #[cfg(feature = "cuda")]
            Form::Fp8(_) => bail!("a layer that rounds activations has its bias already, or has none"),
        }
    }

    /// The same layer, which may round activations to FP8 (e4m3, a scale a row) from now on, where that is faster: on a
    /// Hopper GPU, of FP8 weights with one scale a row, for many rows of `x`. Others are as they were.
    ///
    /// An activation is then off by at most 1/16 of itself, or by 1/458752 of the row's largest where that is more.
    ///
    /// # Errors
    /// The GPU fails, or is out of memory.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unnecessary_wraps, reason = "a GPU may fail"))]
    pub fn with_fp8_activations(self) -> Result<Linear> {
        match self.weights {
            #[cfg(feature = "cuda")]
            Form::Quantized(weights) => Ok(Self { weights: fp8::Fp8::form_of(weights)? }),
            weights => Ok(Self { weights }),
        }
    }

    /// As [`Linear::logits`], to a GPU's memory with room for them.
    #[cfg(feature = "cuda")]
    pub(crate) fn scores(&self, x: &Tensor, into: DevicePtr) -> Result<()> {
        match &self.weights {
            Form::Dense(dense) => dense.scores(x, into),
            _ => bail!("a router on a GPU must be loaded by Linear::load_widened"),
        }
    }

    /// What a GPU's kernels for experts read; `None` on a CPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self) -> Option<OnGpu<'_>> {
        match &self.weights {
            Form::Packed(_) | Form::Parts(_) => None,
            Form::Dense(dense) => {
                let (rows, columns) = (dense.out_features(), dense.in_features());
                let layout = Packing { format: Format::Bf16, rows, columns, group: columns };
                Some(OnGpu { layout, codes: dense.weight(), scales: None, bias: dense.bias().map(Bias::tensor) })
            }
            Form::Quantized(q) => Some(q.on_gpu()),
            Form::Fp8(fp8) => Some(fp8.weights().on_gpu()),
        }
    }

    /// As in a build with CUDA; in this one there is no GPU.
    ///
    /// # Errors
    /// Always.
    #[cfg(not(feature = "cuda"))]
    pub fn dummy(_: &[(usize, u64)], _: usize, _: f32, _: &Device) -> Result<Linear> {
        bail!("this program was built without CUDA")
    }

    /// Repacks the rows of all sources, one after the other, into one matrix.
    ///
    /// # Errors
    /// If there is no source, their `cols` differ, one is no matrix ([`RowSource::check`]) or has a row that holds what is
    /// not a number ([`RowSource::faulty_row`]), or the bias is not one number a row.
    pub fn pack(sources: &[RowSource<'_>], bias: Option<Vec<f32>>, activations: Activations) -> Result<Linear> {
        let (out_features, in_features) = check_sources(sources)?;
        if bias.as_ref().is_some_and(|bias| bias.len() != out_features) {
            bail!("a bias of {} numbers does not fit {out_features} output features", bias.map_or(0, |b| b.len()));
        }
        let mut orders: Vec<Vec<u32>> = Vec::new();
        let pack = |source: &RowSource<'_>| Section::pack(source, input_of(source, &mut orders));
        let sections = sources.iter().map(pack).collect::<Result<_>>()?;
        let weights = Weights { in_features, out_features, sections, orders, bias, activations };
        Ok(Linear { weights: Form::Packed(Arc::new(weights)) })
    }

    pub fn in_features(&self) -> usize {
        match &self.weights {
            Form::Packed(weights) => weights.in_features,
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => dense.in_features(),
            #[cfg(feature = "cuda")]
            Form::Quantized(quantized) => quantized.layout().columns,
            #[cfg(feature = "cuda")]
            Form::Parts(parts) => parts.in_features(),
            #[cfg(feature = "cuda")]
            Form::Fp8(fp8) => fp8.weights().layout().columns,
        }
    }

    pub fn out_features(&self) -> usize {
        match &self.weights {
            Form::Packed(weights) => weights.out_features,
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => dense.out_features(),
            #[cfg(feature = "cuda")]
            Form::Quantized(quantized) => quantized.layout().rows,
            #[cfg(feature = "cuda")]
            Form::Parts(parts) => parts.out_features(),
            #[cfg(feature = "cuda")]
            Form::Fp8(fp8) => fp8.weights().layout().rows,
        }
    }

    /// Memory that the weights take, in bytes, the bias not counted.
    pub fn packed_bytes(&self) -> usize {
        match &self.weights {
            Form::Packed(weights) => weights.sections.iter().map(Section::packed_bytes).sum(),
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => 2 * dense.in_features() * dense.out_features(),
            #[cfg(feature = "cuda")]
            Form::Quantized(quantized) => quantized.packed_bytes(),
            #[cfg(feature = "cuda")]
            Form::Parts(parts) => parts.packed_bytes(),
            #[cfg(feature = "cuda")]
            Form::Fp8(fp8) => fp8.weights().packed_bytes(),
        }
    }

    /// `x W^T (+ b)`: `x` is `[m, in_features]` f32, contiguous; the result `[m, out_features]` f32 (on a GPU both are
    /// bf16). A row of `x` with a NaN or an infinity gives NaN (or an infinity) and never a number.
    ///
    /// # Errors
    /// If `x` has another shape, dtype or layout.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weights {
            Form::Packed(weights) => x.apply_op1_no_bwd(&Product { weights }),
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => dense.forward(x),
            #[cfg(feature = "cuda")]
            Form::Quantized(quantized) => quantized.forward(x, DType::BF16, None),
            #[cfg(feature = "cuda")]
            Form::Parts(parts) => parts.forward(x, DType::BF16, None),
            #[cfg(feature = "cuda")]
            Form::Fp8(fp8) => fp8.forward(x),
        }
    }

    /// As [`Linear::forward`], but the result is f32 on every device: logits are compared closely. On a GPU it is
    /// written to `into`, f32 `[m, out_features]`, if that is given.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    #[cfg_attr(not(feature = "cuda"), allow(unused_variables, reason = "memory is given on a GPU alone"))]
    pub fn logits(&self, x: &Tensor, into: Option<&Tensor>) -> Result<Tensor> {
        match &self.weights {
            Form::Packed(_) => self.forward(x),
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => dense.logits(x, into),
            #[cfg(feature = "cuda")]
            Form::Quantized(quantized) => quantized.forward(x, DType::F32, into),
            #[cfg(feature = "cuda")]
            Form::Parts(parts) => parts.forward(x, DType::F32, into),
            #[cfg(feature = "cuda")]
            Form::Fp8(fp8) => fp8.weights().forward(x, DType::F32, into),
        }
    }

    /// The rows `ids` of the matrix, dequantized exactly, times `scale`: `[ids, in_features]`, f32 (on a GPU bf16). The
    /// bias is not added. This is the token embedding, whether its table is tied to the output layer or not.
    ///
    /// # Errors
    /// If an id is not below `out_features`.
    pub fn embed(&self, ids: TokenIds<'_>, scale: f32) -> Result<Tensor> {
        match &self.weights {
            Form::Packed(weights) => weights.embed(ids.host, scale),
            #[cfg(feature = "cuda")]
            Form::Dense(dense) => dense.embed(ids, scale),
            #[cfg(feature = "cuda")]
            Form::Quantized(_) | Form::Parts(_) | Form::Fp8(_) => {
                bail!("an embedding on a GPU must be loaded by Linear::load_widened")
            }
        }
    }
}

/// Output and input features of all sources together.
fn check_sources(sources: &[RowSource<'_>]) -> Result<(usize, usize)> {
    let Some(first) = sources.first() else { bail!("a linear layer needs at least one source of rows") };
    let in_features = first.cols;
    let mut out_features = 0;
    for source in sources {
        if source.cols != in_features {
            bail!("rows of {} and of {in_features} columns cannot be one linear layer", source.cols);
        }
        source.check()?;
        out_features += source.rows;
    }
    Ok((out_features, in_features))
}

/// The number of the source's order of columns, which is added to `orders` if it is new; 0 is as they come.
fn input_of(source: &RowSource<'_>, orders: &mut Vec<Vec<u32>>) -> usize {
    let Some(order) = source.order else { return 0 };
    let known = orders.iter().position(|known| known == order);
    1 + known.unwrap_or_else(|| {
        orders.push(order.to_vec());
        orders.len() - 1
    })
}

impl Weights {
    fn embed(&self, ids: &[u32], scale: f32) -> Result<Tensor> {
        let mut rows = vec![0f32; ids.len() * self.in_features];
        for (&id, row) in ids.iter().zip(rows.chunks_exact_mut(self.in_features)) {
            self.read_row(id as usize, row)?;
        }
        if scale != 1.0 {
            rows.iter_mut().for_each(|x| *x *= scale);
        }
        Tensor::from_vec(rows, (ids.len(), self.in_features), &Device::Cpu)
    }

    fn read_row(&self, id: usize, out: &mut [f32]) -> Result<()> {
        let mut first = 0;
        for section in &self.sections {
            if id - first < section.rows() {
                section.read_row(id - first, out);
                if let Some(index) = section.input().checked_sub(1) {
                    RowSource::put_in_order(&self.orders[index], out);
                }
                return Ok(());
            }
            first += section.rows();
        }
        bail!("row {id} of a matrix of {} rows", self.out_features)
    }
}

struct Product<'a> {
    weights: &'a Weights,
}

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (m, cols) = layout.shape().dims2()?;
        if cols != self.weights.in_features {
            bail!("a linear layer of {} input features was given {cols}", self.weights.in_features);
        }
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("the input of a linear layer must be contiguous")
        };
        let x = &storage.as_slice::<f32>()?[start..end];
        let y = product::forward(self.weights, Isa::best(), x);
        Ok((CpuStorage::F32(y), Shape::from((m, self.weights.out_features))))
    }
}
