// The matrix product behind the stand-ins for cuBLAS and cuBLASLt: D = alpha * op(A) * op(B) + beta * C, by columns.
#pragma once

#include <cstdint>

#include "api.h"

namespace blas {

using Status = int;
constexpr Status OK = 0, NOT_INITIALIZED = 1, BAD_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15;

// cudaDataType.
enum Type { F32 = 0, F64 = 1, F16 = 2, BF16 = 14, E4M3 = 28 };

// A matrix of `rows` by `columns`, column i at i * leading.
struct Matrix {
    Type type;
    CUdeviceptr at;
    uint64_t rows, columns;
    int64_t leading;
    int64_t stride;  // from one matrix of the batch to the next, in elements
};

struct Product {
    Matrix a, b, c, d;
    bool transposed_a, transposed_b;
    int batch;
    double alpha, beta;
    // One value a row of D; 0 without.
    CUdeviceptr bias;
    Type bias_type;
    // Each the address of a float, or 0; with `outer_scales`, of one for each row of op(A) and for each column of op(B).
    CUdeviceptr scale_a, scale_b, scale_d;
    bool outer_scales;
};

size_t bytes_of(Type type);
bool known(Type type);
// Queues it, when shapes, bounds and dtypes are right.
Status enqueue(const Product& product, void* stream);

}  // namespace blas
