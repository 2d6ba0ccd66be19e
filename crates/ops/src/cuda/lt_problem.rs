//! One product in cuBLASLt's terms: what is multiplied, how it lies, and which algorithms there are for it.

use std::ffi::c_int;

use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::result::{
    CublasError, create_matmul_desc, create_matmul_pref, create_matrix_layout, destroy_matmul_desc,
    destroy_matmul_pref, destroy_matrix_layout, set_matmul_desc_attribute, set_matmul_pref_attribute,
};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::{DType, Result, bail};

use super::driver_error;
use super::matmul::Product;

/// Algorithms that are asked for.
const MOST_ALGORITHMS: usize = 6;

/// cuBLASLt counts in columns: there `y^T [n, m] = weight [n, k] x^T [k, m]`, with `weight` stored transposed.
pub(super) struct Problem {
    description: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
}

impl Problem {
    pub(super) fn new(product: Product) -> Result<Self> {
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
        Ok(Self { description, weight: layout(bf16, k, n)?, x: layout(bf16, k, m)?, y: layout(out, n, m)? })
    }

    pub(super) fn description(&self) -> sys::cublasLtMatmulDesc_t {
        self.description
    }

    pub(super) fn weight(&self) -> sys::cublasLtMatrixLayout_t {
        self.weight
    }

    pub(super) fn x(&self) -> sys::cublasLtMatrixLayout_t {
        self.x
    }

    pub(super) fn y(&self) -> sys::cublasLtMatrixLayout_t {
        self.y
    }

    /// Algorithms that need no more than `workspace` bytes, the one that cuBLASLt thinks fastest first; at least one.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn algorithms(
        &self,
        handle: sys::cublasLtHandle_t,
        product: Product,
        workspace: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let preference = create_matmul_pref().map_err(driver_error)?;
        // SAFETY: plain numbers, and a status of which 0 is one.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; MOST_ALGORITHMS] = unsafe { std::mem::zeroed() };
        let mut count: c_int = 0;
        // SAFETY: all handles are alive; the attribute is a size; there is room for as many results as are asked for.
        let asked = unsafe {
            set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| set_alignment(preference, product))
            .and_then(|()| {
                sys::cublasLtMatmulAlgoGetHeuristic(
                    handle,
                    self.description,
                    self.weight,
                    self.x,
                    self.y,
                    self.y,
                    preference,
                    MOST_ALGORITHMS as c_int,
                    found.as_mut_ptr(),
                    &mut count,
                )
                .result()
            })
        };
        // SAFETY: created above, destroyed once.
        unsafe { destroy_matmul_pref(preference) }.map_err(driver_error)?;
        asked.map_err(driver_error)?;
        let usable = found[..count.max(0) as usize].iter().filter(|result| result.state.result().is_ok());
        let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
        if algorithms.is_empty() {
            let Product { m, n, k, .. } = product;
            bail!("cuBLASLt has no algorithm for [{m}, {k}] times [{n}, {k}] transposed");
        }
        Ok(algorithms)
    }
}

/// Results may begin at any row of a larger tensor, so they are aligned as rows are.
///
/// # Safety
/// The preference is alive.
unsafe fn set_alignment(
    preference: sys::cublasLtMatmulPreference_t,
    product: Product,
) -> std::result::Result<(), CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t::{
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    let row = product.n * product.out.size_in_bytes();
    let bytes = 1u32 << row.trailing_zeros().min(8);
    for attribute in [CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES] {
        // SAFETY: the attribute is of that type; the preference by the caller's word.
        unsafe { set_matmul_pref_attribute(preference, attribute, (&raw const bytes).cast(), size_of_val(&bytes)) }?;
    }
    Ok(())
}

impl Drop for Problem {
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
