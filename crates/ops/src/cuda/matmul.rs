//! Matrix products by cuBLASLt. Asking it for an algorithm takes longer than a small product, so the answer is kept for
//! each shape.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::result::{
    create_handle, create_matmul_desc, create_matmul_pref, create_matrix_layout, destroy_matmul_desc,
    destroy_matmul_pref, destroy_matrix_layout, get_matmul_algo_heuristic, matmul, set_matmul_desc_attribute,
    set_matmul_pref_attribute,
};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr as _};
use candle_core::{DType, Result, bail};
use plimsoll_kernels::DevicePtr;
use plimsoll_kernels::cuda::CudaQueue;

use super::driver_error;

/// What NVIDIA recommends for Hopper; less would do before it.
const WORKSPACE_BYTES: usize = 32 << 20;

/// cuBLASLt on one stream.
pub(super) struct Matmul {
    stream: Arc<CudaStream>,
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    plans: HashMap<Product, Plan>,
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

pub(super) struct Operands {
    /// bf16 `[m, k]`.
    pub(super) x: DevicePtr,
    /// bf16 `[n, k]`.
    pub(super) weight: DevicePtr,
    /// `[m, n]`.
    pub(super) y: DevicePtr,
}

/// How one product is computed.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Matmul {
    pub(super) fn new(stream: Arc<CudaStream>) -> Result<Self> {
        stream.context().bind_to_thread().map_err(driver_error)?;
        let handle = create_handle().map_err(driver_error)?;
        // SAFETY: cuBLASLt writes before it reads there.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE_BYTES) }.map_err(driver_error)?;
        Ok(Self { stream, handle, workspace, plans: HashMap::new() })
    }

    /// Queues a product.
    ///
    /// # Errors
    /// cuBLASLt has no algorithm for it, or fails.
    pub(super) fn run(&mut self, queue: &CudaQueue, operands: Operands, product: Product) -> Result<()> {
        queue.stream().context().bind_to_thread().map_err(driver_error)?;
        if !self.plans.contains_key(&product) {
            self.plans.insert(product, Plan::new(self.handle, product)?);
        }
        let plan = &self.plans[&product];
        let (alpha, beta) = (1f32, 0f32);
        let address = |at: DevicePtr| at.0 as *const c_void;
        // SAFETY: the layouts describe the operands, whose sizes the caller has checked; the workspace is as large as
        // the algorithm was told; all work on it is in the order of one stream.
        unsafe {
            matmul(
                self.handle,
                plan.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                address(operands.weight),
                plan.weight,
                address(operands.x),
                plan.x,
                address(operands.y),
                plan.y,
                operands.y.0 as *mut c_void,
                plan.y,
                &plan.algorithm,
                self.workspace.device_ptr(&self.stream).0 as *mut c_void,
                WORKSPACE_BYTES,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(driver_error)
    }
}

impl Plan {
    /// cuBLASLt counts in columns: there `y^T [n, m] = weight [n, k] x^T [k, m]`, with `weight` stored transposed.
    fn new(handle: sys::cublasLtHandle_t, product: Product) -> Result<Self> {
        let Product { m, n, k, out } = product;
        let bf16 = sys::cudaDataType_t::CUDA_R_16BF;
        let out = match out {
            DType::BF16 => bf16,
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            other => bail!("linear: no product gives {other:?}"),
        };
        let layout = |of, rows: usize, columns: usize| {
            create_matrix_layout(of, rows as u64, columns as u64, rows as i64).map_err(driver_error)
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map_err(driver_error)?;
        let transposed = cublasOperation_t::CUBLAS_OP_T;
        // SAFETY: the attribute is of that type.
        unsafe {
            set_matmul_desc_attribute(
                description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
        }
        .map_err(driver_error)?;
        let (weight, x, y) = (layout(bf16, k, n)?, layout(bf16, k, m)?, layout(out, n, m)?);
        let preference = create_matmul_pref().map_err(driver_error)?;
        let most = WORKSPACE_BYTES;
        // SAFETY: all handles are alive; the attribute is a size.
        let chosen = unsafe {
            set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const most).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| get_matmul_algo_heuristic(handle, description, weight, x, y, y, preference))
        };
        // SAFETY: created above, destroyed once.
        unsafe { destroy_matmul_pref(preference) }.map_err(driver_error)?;
        let algorithm = chosen.map_err(|error| {
            candle_core::Error::Msg(format!("cuBLASLt has no algorithm for [{m}, {k}] x [{n}, {k}]^T: {error:?}"))
        })?;
        Ok(Self { description, weight, x, y, algorithm: algorithm.algo })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: created by `new`, destroyed once.
        unsafe {
            for layout in [self.weight, self.x, self.y] {
                let _ = destroy_matrix_layout(layout);
            }
            let _ = destroy_matmul_desc(self.description);
        }
    }
}
