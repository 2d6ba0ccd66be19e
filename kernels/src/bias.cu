// Biases of products that cuBLASLt computed.
//
//     y[t, n] = y[t, n] + bias[n]      y: bf16 or f32 [tokens, rows], bias: f32 [rows]
//
// Bytes: 4 (bf16) or 8 (f32) for each element of y. Share of the roofline: not measured yet.
#include "device.cuh"

// blockIdx.x is the token, blockIdx.y the part of its row.
template <typename T> __device__ __forceinline__ void add_bias(T* y, const float* bias, uint32_t rows) {
    T* row = y + static_cast<uint64_t>(blockIdx.x) * rows;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint32_t n = (4 * blockIdx.y + i) * blockDim.x + threadIdx.x;
        if (n < rows) {
            row[n] = from_float<T>(to_float(row[n]) + __ldg(bias + n));
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) add_bias_bf16(bf16* y, const float* bias, uint32_t rows) {
    add_bias(y, bias, rows);
}

extern "C" __global__ void __launch_bounds__(256) add_bias_f32(float* y, const float* bias, uint32_t rows) {
    add_bias(y, bias, rows);
}
