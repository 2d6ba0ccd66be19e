//! Mixtures of experts on a GPU. Nothing waits for the host: which experts work on how many tokens is found out and read
//! in device memory, by launches that are the same whatever it is.

use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtod_async;
use candle_core::{DType, Result, Tensor, bail};
use plimsoll_kernels::combine::Combine;
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation as Gate, Layout, Packed, Way, Work};
use plimsoll_kernels::route::{Route, RoutePlanSize, Weighting as Weights};
use plimsoll_kernels::{DevicePtr, Queue};

use super::{Activation, Weighting};
use crate::cuda::{Cuda, address, driver_error, launch_error};
use crate::linear::{Linear, OnGpu};

/// Addresses begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// Where the tokens of a batch go.
#[derive(Clone, Debug)]
pub(super) struct GpuRoutes {
    /// Holds all of the below; bf16 for the arena's sake.
    _memory: Tensor,
    slots: DevicePtr,
    plan: DevicePtr,
    /// f32 `[tokens, top]`
    weights: DevicePtr,
    size: RoutePlanSize,
    way: Way,
    weighs_inputs: bool,
}

/// Scores `x` by `router` and routes it.
pub(super) fn route(router: &Linear, x: &Tensor, top: usize, weighting: Weighting) -> Result<GpuRoutes> {
    let (tokens, experts) = (x.dim(0)?, router.out_features());
    let way = Way::experts(tokens * top, experts);
    let size =
        RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, item_rows: way.item_rows() };
    let cuda = Cuda::of(x.device())?;
    let slots = tokens * top;
    let words = [tokens * experts, slots, slots, slots, size.words() as usize];
    let offsets = words.iter().scan(0, |end, words| {
        let start = *end;
        *end += (words * size_of::<u32>()).next_multiple_of(ALIGNMENT);
        Some(start)
    });
    let offsets: Vec<usize> = offsets.collect();
    let bytes = offsets[4] + words[4] * size_of::<u32>();
    let memory = cuda.empty(bytes.div_ceil(DType::BF16.size_in_bytes()), DType::BF16)?;
    let start = address("route", "memory", &memory, DType::BF16)?;
    let [scores, chosen, weights, sorted, plan] = [0, 1, 2, 3, 4].map(|i| start.byte_add(offsets[i]));
    router.scores(x, scores)?;
    let op = Route {
        chosen,
        weights,
        slots: sorted,
        plan,
        ticket: cuda.ticket()?,
        scores,
        weighting: match weighting {
            Weighting::AmongChosen => Weights::AmongChosen,
            Weighting::AmongAll => Weights::AmongAll,
            Weighting::SigmoidOfInput => Weights::Sigmoid,
        },
        size,
    };
    op.run(cuda.queue()).map_err(launch_error)?;
    let weighs_inputs = weighting == Weighting::SigmoidOfInput;
    Ok(GpuRoutes { _memory: memory, slots: sorted, plan, weights, size, way, weighs_inputs })
}

/// All experts' matrices, side by side.
#[derive(Clone, Debug)]
pub(super) struct GpuExperts {
    experts: usize,
    gate_up: Stack,
    down: Stack,
}

/// One matrix of every expert.
#[derive(Clone, Debug)]
struct Stack {
    /// Of each.
    layout: Layout,
    codes: Tensor,
    scales: Option<Tensor>,
    /// f32 `[experts, rows]`
    bias: Option<Tensor>,
}

impl GpuExperts {
    /// Of matrices that are on the GPU.
    ///
    /// # Errors
    /// Sizes that no kernel takes, experts in different formats, or the GPU is out of memory.
    pub(super) fn new(gate_up: Vec<Linear>, down: Vec<Linear>) -> Result<Self> {
        let experts = gate_up.len();
        let gate_up = Stack::new(gate_up)?;
        if !gate_up.layout.rows.is_multiple_of(32) {
            bail!("experts of {} features are not served on a GPU: a multiple of 16 is", gate_up.layout.rows / 2);
        }
        Ok(Self { experts, gate_up, down: Stack::new(down)? })
    }

    /// `x`: bf16 `[tokens, hidden]`; the result is the same.
    pub(super) fn forward(&self, x: &Tensor, routes: &GpuRoutes, activation: Activation) -> Result<Tensor> {
        let (tokens, hidden) = x.dims2()?;
        let size = routes.size;
        if tokens != size.tokens as usize || size.experts as usize != self.experts {
            bail!("experts: {tokens} tokens and {} experts were given routes of {size:?}", self.experts);
        }
        let cuda = Cuda::of(x.device())?;
        let slots = size.slots() as usize;
        let inner = self.gate_up.layout.rows / 2;
        let middle = cuda.empty((slots, inner), DType::BF16)?;
        let input_weights = if routes.weighs_inputs { routes.weights } else { DevicePtr::NULL };
        let gate = match activation {
            Activation::SiluMul => Gate::SiluMul,
            Activation::ClampedSwiglu { alpha, limit } => Gate::ClampedSwiglu { alpha, limit },
        };
        self.gate_up.run(cuda.queue(), x, &middle, routes, gate, routes.work(size.top, false, input_weights))?;
        let parts = cuda.empty((slots, hidden), DType::BF16)?;
        self.down.run(cuda.queue(), &middle, &parts, routes, Gate::None, routes.work(0, true, DevicePtr::NULL))?;
        if size.top == 1 && routes.weighs_inputs {
            return Ok(parts);
        }
        let out = cuda.empty((tokens, hidden), DType::BF16)?;
        let op = Combine {
            out: address("experts", "out", &out, DType::BF16)?,
            parts: address("experts", "parts", &parts, DType::BF16)?,
            weights: if routes.weighs_inputs { DevicePtr::NULL } else { routes.weights },
            tokens: size.tokens,
            top: size.top,
            hidden: hidden as u32,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(out)
    }
}

impl GpuRoutes {
    fn work(&self, top: u32, scatters: bool, input_weights: DevicePtr) -> Work {
        Work::Experts { plan: self.plan, slots: self.slots, items: self.size.capacity(), top, scatters, input_weights }
    }
}

impl Stack {
    /// Copies the matrices, which go, into one memory.
    fn new(matrices: Vec<Linear>) -> Result<Self> {
        let all: Vec<OnGpu<'_>> = matrices.iter().filter_map(Linear::on_gpu).collect();
        let Some(first) = all.first() else { bail!("experts: there are none on the GPU") };
        let layout = first.layout;
        let alike = |one: &OnGpu<'_>| one.layout == layout && one.bias.is_some() == first.bias.is_some();
        if all.len() != matrices.len() || !all.iter().all(alike) {
            bail!("experts of one layer that are stored in different formats are not served on a GPU");
        }
        layout.check().map_err(candle_core::Error::msg)?;
        let join = |of: &dyn Fn(&OnGpu<'_>) -> Option<Tensor>| {
            all.iter().map(of).collect::<Option<Vec<Tensor>>>().map(|parts| joined(&parts)).transpose()
        };
        let codes = join(&|one| Some(one.codes.clone()))?.expect("every matrix has codes");
        let scales = join(&|one| one.scales.cloned())?;
        let bias = join(&|one| one.bias.cloned())?;
        Ok(Self { layout, codes, scales, bias })
    }

    fn run(
        &self,
        queue: &dyn Queue,
        x: &Tensor,
        y: &Tensor,
        routes: &GpuRoutes,
        activation: Gate,
        work: Work,
    ) -> Result<()> {
        if x.dim(1)? != self.layout.columns {
            bail!("experts: {} input features, expected {}", x.dim(1)?, self.layout.columns);
        }
        let optional = |operand: &str, tensor: &Option<Tensor>| match tensor {
            Some(tensor) => address("experts", operand, tensor, tensor.dtype()),
            None => Ok(DevicePtr::NULL),
        };
        let op = Packed {
            y: address("experts", "y", y, DType::BF16)?,
            output: Output::Bf16,
            x: address("experts", "x", x, DType::BF16)?,
            codes: address("experts", "codes", &self.codes, self.codes.dtype())?,
            scales: optional("scales", &self.scales)?,
            bias: optional("bias", &self.bias)?,
            layout: self.layout,
            activation,
            way: routes.way,
            work,
        };
        op.run(queue).map_err(launch_error)
    }
}

/// Tensors of one dtype, one after the other.
fn joined(parts: &[Tensor]) -> Result<Tensor> {
    let (dtype, device) = (parts[0].dtype(), parts[0].device());
    let cuda = Cuda::of(device)?;
    let all = cuda.empty(parts.iter().map(Tensor::elem_count).sum::<usize>(), dtype)?;
    let mut to = address("experts", "all", &all, dtype)?;
    for part in parts {
        let (from, bytes) = (address("experts", "part", part, dtype)?, part.elem_count() * dtype.size_in_bytes());
        // SAFETY: both are in bounds: `all` has room for all parts. The copy is in the order of the one stream, in which
        // parts are freed too.
        unsafe { memcpy_dtod_async(to.0, from.0, bytes, cuda.stream().cu_stream()) }.map_err(driver_error)?;
        to = to.byte_add(bytes);
    }
    Ok(all)
}
