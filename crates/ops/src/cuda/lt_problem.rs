//! One product in cuBLASLt's terms: what is multiplied, how it lies, and which algorithms there are for it.

use std::ffi::c_int;

use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::result::{
    CublasError, create_matmul_desc, create_matmul_pref, create_matrix_layout, destroy_matmul_desc,
    destroy_matmul_pref, destroy_matrix_layout, set_matmul_desc_attribute, set_matmul_pref_attribute,
};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::{DType, Result, bail};
use sys::cublasLtMatmulDescAttributes_t as Attribute;

use super::driver_error;
use super::matmul::{Inputs, Operands, Product};

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
    /// For these operands at first, which are to be there and aligned as all later ones are.
    pub(super) fn new(product: Product, operands: &Operands) -> Result<Self> {
        let Product { m, n, k, pitch, inputs, out, has_bias } = product;
        let inputs_are = match inputs {
            Inputs::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Inputs::Fp8 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
        };
        let out = match out {
            DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
            DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
            other => bail!("linear: no product gives {other:?}"),
        };
        let layout = |of, rows: usize, columns: usize, pitch: usize| {
            create_matrix_layout(of, rows as u64, columns as u64, pitch as i64).map_err(driver_error)
        };
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let problem = Self {
            description: create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F).map_err(driver_error)?,
            weight: layout(inputs_are, k, n, k)?,
            x: layout(inputs_are, k, m, k)?,
            y: layout(out, n, m, pitch)?,
        };
        problem.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, cublasOperation_t::CUBLAS_OP_T)?;
        if has_bias {
            // It is of the results' type.
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS)?;
        }
        if inputs == Inputs::Fp8 {
            // Sums are carried over to f32 on the way, which cuBLASLt does unless told otherwise (FAST_ACCUM).
            let of_rows = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE, of_rows)?;
            problem.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE, of_rows)?;
        }
        problem.attach(operands, product)?;
        Ok(problem)
    }

    /// Says where bias and scales are, which no algorithm depends on.
    pub(super) fn attach(&self, operands: &Operands, product: Product) -> Result<()> {
        if product.has_bias {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, operands.bias_as_y.0)?;
        }
        if product.inputs == Inputs::Fp8 {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, operands.weight_scales.0)?;
            self.set(Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, operands.x_scales.0)?;
        }
        Ok(())
    }

    /// `value` is of the attribute's type.
    fn set<T>(&self, attribute: Attribute, value: T) -> Result<()> {
        // SAFETY: the description is alive, and copies as many bytes as the value has.
        unsafe { set_matmul_desc_attribute(self.description, attribute, (&raw const value).cast(), size_of::<T>()) }
            .map_err(driver_error)
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

    /// Algorithms that need no more than `workspace` bytes, the one that cuBLASLt thinks fastest first; there may be none.
    ///
    /// # Errors
    /// The library fails.
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
        match asked {
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => return Ok(Vec::new()),
            asked => asked.map_err(driver_error)?,
        }
        let usable = found[..count.max(0) as usize].iter().filter(|result| result.state.result().is_ok());
        Ok(usable.map(|result| result.algo).collect())
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
    let row = product.pitch * product.out.size_in_bytes();
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
