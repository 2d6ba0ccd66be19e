//! Matrix products: by cuBLASLt, or for few rows by the kernel that only reads the weights fast. Which one, and which of
//! cuBLASLt's algorithms, is found out by trying them when a shape first comes up while the server starts, and kept.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublaslt::result::{create_handle, destroy_handle, matmul};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _};
use candle_core::{DType, Result, bail};
use plimsoll_kernels::cuda::CudaQueue;
use plimsoll_kernels::gemv::{Gemv, MOST_TOKENS, Output};
use plimsoll_kernels::{DevicePtr, LaunchError};

use super::lt_problem::Problem;
use super::trials::Trials;
use super::{driver_error, launch_error};

/// What NVIDIA recommends for Hopper; less would do before it.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Products of more rows take the first algorithm that cuBLASLt names: they come in too many sizes to try each.
const MOST_TRIED_ROWS: usize = 512;

/// Products on one stream.
pub(super) struct Matmul {
    stream: Arc<CudaStream>,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    /// Nothing for what cuBLASLt cannot do.
    chosen: HashMap<Product, Option<Chosen>>,
    /// Without them, new shapes take what cuBLASLt names first.
    pub(super) trials: Trials,
}

// SAFETY: the handle may be used from any thread, one at a time, which the lock around this sees to.
unsafe impl Send for Matmul {}

/// `[m, k]` times `[n, k]` transposed, added up in f32, rounded to `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Elements from one row of y to the next.
    pub(crate) pitch: usize,
    pub(crate) inputs: Inputs,
    pub(crate) out: DType,
    pub(crate) has_bias: bool,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Inputs {
    Bf16,
    /// e4m3, with a scale for each row of either; `m`, `n` and `k` are multiples of 16. Hopper has it.
    Fp8,
}

#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// `[m, k]`
    pub(crate) x: DevicePtr,
    /// `[n, k]`
    pub(crate) weight: DevicePtr,
    /// f32 `[m]`, of [`Inputs::Fp8`].
    pub(crate) x_scales: DevicePtr,
    /// f32 `[n]`, likewise.
    pub(crate) weight_scales: DevicePtr,
    /// f32 `[n]`, or [`DevicePtr::NULL`]; not read of [`Inputs::Fp8`].
    pub(crate) bias: DevicePtr,
    /// The same, of y's dtype.
    pub(crate) bias_as_y: DevicePtr,
    /// `[m, n]`
    pub(crate) y: DevicePtr,
}

/// How one product is computed.
struct Chosen {
    problem: Problem,
    way: Way,
}

#[derive(Clone, Copy)]
enum Way {
    Lt(sys::cublasLtMatmulAlgo_t),
    Gemv,
}

impl Matmul {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().map_err(driver_error)?;
        let handle = create_handle().map_err(driver_error)?;
        // SAFETY: cuBLASLt writes before it reads there.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }.map_err(driver_error)?;
        let trials = Trials::new(stream.clone());
        Ok(Self { stream, handle, workspace, chosen: HashMap::new(), trials })
    }

    /// Queues a product. A shape's first one may be run several times, and waited for.
    ///
    /// # Errors
    /// There is no way to compute it, or the device fails.
    pub(super) fn run(&mut self, queue: &CudaQueue, operands: Operands, product: Product) -> Result<()> {
        self.find(queue, operands, product)?;
        let Some(chosen) = &self.chosen[&product] else {
            let Product { m, n, k, .. } = product;
            bail!("cuBLASLt has no algorithm for [{m}, {k}] times [{n}, {k}] transposed");
        };
        self.launch(queue, operands, product, &chosen.problem, chosen.way)
    }

    /// Whether there is a way to compute a product. A shape's first one may be run several times, and waited for: on
    /// whatever the operands hold.
    ///
    /// # Errors
    /// The device fails.
    pub(super) fn find(&mut self, queue: &CudaQueue, operands: Operands, product: Product) -> Result<bool> {
        self.stream.context().bind_to_thread().map_err(driver_error)?;
        if !self.chosen.contains_key(&product) {
            let chosen = self.choose(queue, operands, product)?;
            self.chosen.insert(product, chosen);
        }
        Ok(self.chosen[&product].is_some())
    }

    fn choose(&self, queue: &CudaQueue, operands: Operands, product: Product) -> Result<Option<Chosen>> {
        let problem = Problem::new(product, &operands)?;
        let mut ways: Vec<Way> =
            problem.algorithms(self.handle, product, WORKSPACE_BYTES)?.into_iter().map(Way::Lt).collect();
        let Product { m, n, k, pitch, inputs, .. } = product;
        if m <= MOST_TOKENS as usize && k.is_multiple_of(8) && pitch == n && inputs == Inputs::Bf16 {
            ways.push(Way::Gemv);
        }
        let Some(&first) = ways.first() else { return Ok(None) };
        let is_tried = self.trials.are_on && ways.len() > 1 && m <= MOST_TRIED_ROWS;
        let way = match is_tried {
            true => self.trials.fastest(&ways, |way| self.launch(queue, operands, product, &problem, way))?,
            false => first,
        };
        Ok(Some(Chosen { problem, way }))
    }

    fn launch(
        &self,
        queue: &CudaQueue,
        operands: Operands,
        product: Product,
        problem: &Problem,
        way: Way,
    ) -> Result<()> {
        match way {
            Way::Gemv => gemv(queue, operands, product).map_err(launch_error),
            Way::Lt(algorithm) => {
                problem.attach(&operands, product)?;
                self.launch_lt(operands, problem, &algorithm)
            }
        }
    }

    fn launch_lt(&self, operands: Operands, problem: &Problem, algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<()> {
        let (alpha, beta) = (1f32, 0f32);
        let address = |at: DevicePtr| at.0 as *const c_void;
        // SAFETY: the layouts describe the operands, whose sizes the caller has checked; the workspace is as large as
        // the algorithm was told; all work on it is in the order of one stream.
        unsafe {
            matmul(
                self.handle,
                problem.description(),
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                address(operands.weight),
                problem.weight(),
                address(operands.x),
                problem.x(),
                address(operands.y),
                problem.y(),
                operands.y.0 as *mut c_void,
                problem.y(),
                algorithm,
                self.workspace.device_ptr(&self.stream).0 as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(driver_error)
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        let _ = unsafe { destroy_handle(self.handle) };
    }
}

fn gemv(queue: &CudaQueue, operands: Operands, product: Product) -> std::result::Result<(), LaunchError> {
    let op = Gemv {
        y: operands.y,
        output: if product.out == DType::F32 { Output::F32 } else { Output::Bf16 },
        x: operands.x,
        w: operands.weight,
        bias: operands.bias,
        tokens: product.m as u32,
        rows: product.n as u32,
        columns: product.k as u32,
    };
    op.run(queue)
}
