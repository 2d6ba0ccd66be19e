// Products of bf16 activations with GGML's Q5_0, Q5_1 and Q5_K.
//
//     y[p, n] = act(sum over k of x[p, k] * w[e(p), n, k] + bias[e(p), n])     x: bf16 [.., columns], y: bf16 [.., width]
//
// The same kernels as in packed_mxfp4.cu, where they are told; how codes and scales lie is in packed/ggml.cuh.
// Bytes: rows * columns * 5.5 / 8 of Q5_0, 6 / 8 of Q5_1, 5.625 / 8 of Q5_K, as told there.
// 2 * rows * columns operations a position. Share of the roofline: not measured yet.
#include "packed/ggml.cuh"
#include "packed/skinny.cuh"
#include "packed/tiled.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) packed_skinny_q5(PACKED_PARAMETERS) { packed::skinny<packed::Q5>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled64_q5(PACKED_PARAMETERS) { packed::tiled<packed::Q5, 1>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled128_q5(PACKED_PARAMETERS) { packed::tiled<packed::Q5, 2>(PACKED_OPERANDS); }
