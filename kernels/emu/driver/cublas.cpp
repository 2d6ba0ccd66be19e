// A stand-in for libcublas: handles, and the products that candle calls.
#include <cstdint>

#include "../include/cuda_fp16.h"
#include "matmul.h"

using blas::Matrix;
using blas::Product;
using blas::Status;
using blas::Type;

namespace {

struct Handle {
    void* stream = nullptr;
    int pointer_mode = 0;
    int math_mode = 0;
};

constexpr int COMPUTE_16F = 64, COMPUTE_64F = 70;

// alpha and beta are of the type that is computed in.
double scalar(const void* at, int compute) {
    if (compute == COMPUTE_64F) return *static_cast<const double*>(at);
    if (compute == COMPUTE_16F) return __half2float(*static_cast<const __half*>(at));
    return *static_cast<const float*>(at);
}

Matrix matrix(int type, const void* at, int rows, int columns, int leading, long long stride) {
    return {static_cast<Type>(type), reinterpret_cast<CUdeviceptr>(at), static_cast<uint64_t>(rows),
            static_cast<uint64_t>(columns), leading, stride};
}

}  // namespace

EXPORT Status cublasCreate_v2(void** handle) {
    *handle = new Handle();
    return blas::OK;
}

EXPORT Status cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return blas::OK;
}

EXPORT Status cublasGetVersion_v2(void*, int* version) {
    *version = 130000;
    return blas::OK;
}

EXPORT Status cublasSetStream_v2(void* handle, void* stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return blas::OK;
}

EXPORT Status cublasGetStream_v2(void* handle, void** stream) {
    *stream = static_cast<Handle*>(handle)->stream;
    return blas::OK;
}

EXPORT Status cublasSetWorkspace_v2(void*, void* workspace, size_t bytes) {
    const CUdeviceptr at = reinterpret_cast<CUdeviceptr>(workspace);
    return plimsoll_emu_check("cublasSetWorkspace", at, bytes) == SUCCESS ? blas::OK : blas::BAD_VALUE;
}

EXPORT Status cublasSetMathMode(void* handle, int mode) {
    static_cast<Handle*>(handle)->math_mode = mode;
    return blas::OK;
}

EXPORT Status cublasGetMathMode(void* handle, int* mode) {
    *mode = static_cast<Handle*>(handle)->math_mode;
    return blas::OK;
}

EXPORT Status cublasSetPointerMode_v2(void*, int mode) { return mode == 0 ? blas::OK : blas::NOT_SUPPORTED; }

EXPORT Status cublasGetPointerMode_v2(void*, int* mode) {
    *mode = 0;
    return blas::OK;
}

EXPORT Status cublasGemmStridedBatchedEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                                         const void* a, int type_a, int lda, long long stride_a, const void* b,
                                         int type_b, int ldb, long long stride_b, const void* beta, void* c, int type_c,
                                         int ldc, long long stride_c, int batch, int compute, int) {
    if (!handle) return blas::NOT_INITIALIZED;
    Product product{};
    product.transposed_a = op_a != 0;
    product.transposed_b = op_b != 0;
    product.a = matrix(type_a, a, op_a ? k : m, op_a ? m : k, lda, stride_a);
    product.b = matrix(type_b, b, op_b ? n : k, op_b ? k : n, ldb, stride_b);
    product.c = product.d = matrix(type_c, c, m, n, ldc, stride_c);
    product.batch = batch;
    product.alpha = scalar(alpha, compute);
    product.beta = scalar(beta, compute);
    return blas::enqueue(product, static_cast<Handle*>(handle)->stream);
}

EXPORT Status cublasGemmEx(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                           int type_a, int lda, const void* b, int type_b, int ldb, const void* beta, void* c,
                           int type_c, int ldc, int compute, int algorithm) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, type_a, lda, 0, b, type_b, ldb, 0, beta, c,
                                      type_c, ldc, 0, 1, compute, algorithm);
}

EXPORT Status cublasSgemmStridedBatched(void* handle, int op_a, int op_b, int m, int n, int k, const float* alpha,
                                        const float* a, int lda, long long stride_a, const float* b, int ldb,
                                        long long stride_b, const float* beta, float* c, int ldc, long long stride_c,
                                        int batch) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, blas::F32, lda, stride_a, b, blas::F32, ldb,
                                      stride_b, beta, c, blas::F32, ldc, stride_c, batch, 68, 0);
}

EXPORT Status cublasSgemm_v2(void* handle, int op_a, int op_b, int m, int n, int k, const float* alpha, const float* a,
                             int lda, const float* b, int ldb, const float* beta, float* c, int ldc) {
    return cublasSgemmStridedBatched(handle, op_a, op_b, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}

EXPORT Status cublasDgemmStridedBatched(void* handle, int op_a, int op_b, int m, int n, int k, const double* alpha,
                                        const double* a, int lda, long long stride_a, const double* b, int ldb,
                                        long long stride_b, const double* beta, double* c, int ldc, long long stride_c,
                                        int batch) {
    return cublasGemmStridedBatchedEx(handle, op_a, op_b, m, n, k, alpha, a, blas::F64, lda, stride_a, b, blas::F64, ldb,
                                      stride_b, beta, c, blas::F64, ldc, stride_c, batch, COMPUTE_64F, 0);
}
