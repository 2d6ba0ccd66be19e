//! Mixtures of experts on a GPU. Nothing waits for the host: which experts work on how many tokens is found out and read
//! in device memory, by launches that are the same whatever it is.

use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtod_async;
use candle_core::{DType, Result, Tensor, bail};
use plimsoll_kernels::combine::Combine;
use plimsoll_kernels::gemv::Output;
use plimsoll_kernels::packed::{Activation as Gate, Layout, Packed, Work};
use plimsoll_kernels::route::{Route, RoutePlanPart, RoutePlanSize, Split, Weighting as Weights};
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
    num_tokens: Option<Tensor>,
    size: RoutePlanSize,
    weighs_inputs: bool,
}

/// Scores `x` by `router` and routes it.
pub(super) fn route(
    router: &Linear,
    x: &Tensor,
    num_tokens: Option<&Tensor>,
    top: usize,
    weighting: Weighting,
) -> Result<GpuRoutes> {
    let (tokens, experts) = (x.dim(0)?, router.out_features());
    let split = Split::of(tokens, experts, top);
    let size = RoutePlanSize { tokens: tokens as u32, experts: experts as u32, top: top as u32, split };
    let cuda = Cuda::of(x.device())?;
    let slots = tokens * top;
    let words = [tokens * experts, slots, slots, slots, size.words() as usize, size.count_words() as usize];
    let offsets = words.iter().scan(0, |end, words| {
        let start = *end;
        *end += (words * size_of::<u32>()).next_multiple_of(ALIGNMENT);
        Some(start)
    });
    let offsets: Vec<usize> = offsets.collect();
    let bytes = offsets[5] + words[5] * size_of::<u32>();
    let memory = cuda.empty(bytes.div_ceil(DType::BF16.size_in_bytes()), DType::BF16)?;
    let start = address("route", "memory", &memory, DType::BF16)?;
    let [scores, chosen, weights, sorted, plan, counts] = [0, 1, 2, 3, 4, 5].map(|i| start.byte_add(offsets[i]));
    router.scores(x, scores)?;
    let op = Route {
        chosen,
        weights,
        slots: sorted,
        plan,
        counts,
        scores,
        num_tokens: address_of_count(num_tokens)?,
        weighting: match weighting {
            Weighting::AmongChosen => Weights::AmongChosen,
            Weighting::AmongAll => Weights::AmongAll,
            Weighting::SigmoidOfInput => Weights::Sigmoid,
        },
        size,
    };
    op.run(cuda.queue()).map_err(launch_error)?;
    let weighs_inputs = weighting == Weighting::SigmoidOfInput;
    let num_tokens = num_tokens.cloned();
    Ok(GpuRoutes { _memory: memory, slots: sorted, plan, weights, num_tokens, size, weighs_inputs })
}

fn address_of_count(num_tokens: Option<&Tensor>) -> Result<DevicePtr> {
    num_tokens.map_or(Ok(DevicePtr::NULL), |count| address("route", "num_tokens", count, DType::U32))
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

    /// `x` and `beside`, which is added: bf16 `[tokens, hidden]`; the result is the same.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        routes: &GpuRoutes,
        activation: Activation,
        beside: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (tokens, hidden) = x.dims2()?;
        let size = routes.size;
        if tokens != size.tokens as usize || size.experts as usize != self.experts {
            bail!("experts: {tokens} tokens and {} experts were given routes of {size:?}", self.experts);
        }
        if beside.is_some_and(|beside| beside.dims() != x.dims()) {
            bail!("experts: {:?} is to be added to {:?}", beside.map(Tensor::shape), x.shape());
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
        let up = Rows { activation: gate, top: size.top, scatters: false, input_weights };
        self.gate_up.run(cuda.queue(), x, &middle, routes, up)?;
        let parts = cuda.empty((slots, hidden), DType::BF16)?;
        let down = Rows { activation: Gate::None, top: 0, scatters: true, input_weights: DevicePtr::NULL };
        self.down.run(cuda.queue(), &middle, &parts, routes, down)?;
        let out = cuda.empty((tokens, hidden), DType::BF16)?;
        let op = Combine {
            out: address("experts", "out", &out, DType::BF16)?,
            parts: address("experts", "parts", &parts, DType::BF16)?,
            weights: if routes.weighs_inputs { DevicePtr::NULL } else { routes.weights },
            beside: beside.map_or(Ok(DevicePtr::NULL), |beside| address("experts", "beside", beside, DType::BF16))?,
            num_tokens: address_of_count(routes.num_tokens.as_ref())?,
            tokens: size.tokens,
            top: size.top,
            hidden: hidden as u32,
        };
        op.run(cuda.queue()).map_err(launch_error)?;
        Ok(out)
    }
}

/// How a product's rows are numbered ([`Work::Experts`]), and what becomes of them.
#[derive(Clone, Copy)]
struct Rows {
    activation: Gate,
    top: u32,
    scatters: bool,
    input_weights: DevicePtr,
}

impl Stack {
    /// Copies the matrices, which go, into one memory.
    fn new(matrices: Vec<Linear>) -> Result<Self> {
        let all: Vec<OnGpu<'_>> = matrices.iter().filter_map(Linear::on_gpu).collect();
        let Some(first) = all.first() else { bail!("experts: there are none on the GPU") };
        let layout = first.layout;
        let alike = |one: &OnGpu<'_>| one.layout == layout && one.bias.is_some() == first.bias.is_some();
        if all.len() != matrices.len() || !all.iter().all(alike) {
            bail!(
                "experts of one layer do not lie alike on the GPU: some have zero points that its kernels do not take; serve \
                 them with --device cpu"
            );
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

    /// A launch for each way that the routes' plan has.
    fn run(&self, queue: &dyn Queue, x: &Tensor, y: &Tensor, routes: &GpuRoutes, rows: Rows) -> Result<()> {
        if x.dim(1)? != self.layout.columns {
            bail!("experts: {} input features, expected {}", x.dim(1)?, self.layout.columns);
        }
        let optional = |operand: &str, tensor: &Option<Tensor>| match tensor {
            Some(tensor) => address("experts", operand, tensor, tensor.dtype()),
            None => Ok(DevicePtr::NULL),
        };
        let (y, x) = (address("experts", "y", y, DType::BF16)?, address("experts", "x", x, DType::BF16)?);
        let codes = address("experts", "codes", &self.codes, self.codes.dtype())?;
        let (scales, bias) = (optional("scales", &self.scales)?, optional("bias", &self.bias)?);
        let Rows { activation, top, scatters, input_weights } = rows;
        routes.size.parts().try_for_each(|RoutePlanPart { way, offset, items }| {
            let plan = routes.plan.byte_add(offset as usize * size_of::<u32>());
            let work = Work::Experts { plan, slots: routes.slots, items, top, scatters, input_weights };
            let (output, layout) = (Output::Bf16, self.layout);
            let op = Packed { y, output, x, codes, scales, bias, layout, activation, way, work };
            op.run(queue).map_err(launch_error)
        })
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
