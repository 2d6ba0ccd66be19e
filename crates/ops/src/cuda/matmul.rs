//! Matrix products: by cuBLASLt, or for few rows by the kernel that only reads the weights fast. Which one, and which of
//! cuBLASLt's algorithms, is found out by trying them when a shape first comes up while the server starts, and kept.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublaslt::result::{create_handle, destroy_handle, matmul};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _};
use candle_core::{DType, Result};
use plimsoll_kernels::bias::AddBias;
use plimsoll_kernels::cuda::CudaQueue;
use plimsoll_kernels::gemv::{Gemv, MOST_TOKENS, Output};
use plimsoll_kernels::{DevicePtr, LaunchError};

use super::lt_problem::Problem;
use super::stopwatch::Stopwatch;
use super::{driver_error, launch_error};

/// What NVIDIA recommends for Hopper; less would do before it.
const WORKSPACE_BYTES: usize = 32 << 20;

/// Products of more rows take the first algorithm that cuBLASLt names: they come in too many sizes to try each.
const MOST_TRIED_ROWS: usize = 512;

/// Larger than any GPU's cache: written between tries, so that weights are read from memory as in a model's step.
const FLUSH_BYTES: usize = 128 << 20;

/// Each way is tried so often; its best time counts.
const TRIES: usize = 3;

/// Products on one stream.
pub(super) struct Matmul {
    stream: Arc<CudaStream>,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    chosen: HashMap<Product, Chosen>,
    /// Whether new shapes are tried out, which takes time; else they take what cuBLASLt names first.
    tries: bool,
}

// SAFETY: the handle may be used from any thread, one at a time, which the lock around this sees to.
unsafe impl Send for Matmul {}

/// `[m, k]` times `[n, k]` transposed; bf16, added up in f32, rounded to `out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) out: DType,
}

#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// bf16 `[m, k]`.
    pub(super) x: DevicePtr,
    /// bf16 `[n, k]`.
    pub(super) weight: DevicePtr,
    /// f32 `[n]`, or [`DevicePtr::NULL`].
    pub(super) bias: DevicePtr,
    /// `[m, n]`.
    pub(super) y: DevicePtr,
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
        Ok(Self { stream, handle, workspace, chosen: HashMap::new(), tries: true })
    }

    /// Queues a product. A shape's first one may be run several times, and waited for.
    ///
    /// # Errors
    /// There is no algorithm for it, or the device fails.
    pub(super) fn run(&mut self, queue: &CudaQueue, operands: Operands, product: Product) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(driver_error)?;
        if !self.chosen.contains_key(&product) {
            let chosen = self.choose(queue, operands, product)?;
            self.chosen.insert(product, chosen);
        }
        let chosen = &self.chosen[&product];
        self.launch(queue, operands, product, &chosen.problem, chosen.way)
    }

    pub(super) fn set_trying(&mut self, tries: bool) {
        self.tries = tries;
    }

    fn choose(&self, queue: &CudaQueue, operands: Operands, product: Product) -> Result<Chosen> {
        let problem = Problem::new(product)?;
        let mut ways: Vec<Way> =
            problem.algorithms(self.handle, product, WORKSPACE_BYTES)?.into_iter().map(Way::Lt).collect();
        if product.m <= MOST_TOKENS as usize && product.k.is_multiple_of(8) {
            ways.push(Way::Gemv);
        }
        let mut best = (f32::INFINITY, ways[0]);
        if !self.tries || ways.len() == 1 || product.m > MOST_TRIED_ROWS {
            return Ok(Chosen { problem, way: best.1 });
        }
        let stopwatch = Stopwatch::new(&self.stream)?;
        // SAFETY: only written.
        let mut flushed = unsafe { self.stream.alloc::<u8>(FLUSH_BYTES) }.map_err(driver_error)?;
        for way in ways {
            for _ in 0..TRIES {
                self.stream.memset_zeros(&mut flushed).map_err(driver_error)?;
                let took = stopwatch.time(|| self.launch(queue, operands, product, &problem, way))?;
                best = if took < best.0 { (took, way) } else { best };
            }
        }
        Ok(Chosen { problem, way: best.1 })
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
                self.launch_lt(operands, problem, &algorithm)?;
                add_bias(queue, operands, product).map_err(launch_error)
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
        output: output(product),
        x: operands.x,
        w: operands.weight,
        bias: operands.bias,
        tokens: product.m as u32,
        rows: product.n as u32,
        columns: product.k as u32,
    };
    op.run(queue)
}

fn add_bias(queue: &CudaQueue, operands: Operands, product: Product) -> std::result::Result<(), LaunchError> {
    let Operands { bias, y, .. } = operands;
    if bias.is_null() {
        return Ok(());
    }
    AddBias { y, output: output(product), bias, tokens: product.m as u32, rows: product.n as u32 }.run(queue)
}

fn output(product: Product) -> Output {
    if product.out == DType::F32 { Output::F32 } else { Output::Bf16 }
}
