// Products of bf16 activations with GGML's Q4_0, Q4_1 and Q4_K.
//
//     y[p, n] = act(sum over k of x[p, k] * w[e(p), n, k] + bias[e(p), n])     x: bf16 [.., columns], y: bf16 [.., width]
//
// The same kernels as in packed_mxfp4.cu, where they are told; how codes and scales lie is in packed/ggml.cuh.
// Bytes: rows * columns * 4.5 / 8 of Q4_0, 5 / 8 of Q4_1, 4.625 / 8 of Q4_K, as told there.
// 2 * rows * columns operations a position. Share of the roofline: not measured yet.
#include "packed/ggml.cuh"
#include "packed/skinny.cuh"
#include "packed/tiled.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) packed_skinny_q4(PACKED_PARAMETERS) { packed::skinny<packed::Q4>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled64_q4(PACKED_PARAMETERS) { packed::tiled<packed::Q4, 1>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled128_q4(PACKED_PARAMETERS) { packed::tiled<packed::Q4, 2>(PACKED_OPERANDS); }
