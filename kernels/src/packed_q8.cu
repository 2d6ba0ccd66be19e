// Products of bf16 activations with GGML's Q8_0.
//
//     y[p, n] = act(sum over k of x[p, k] * w[e(p), n, k] + bias[e(p), n])     x: bf16 [.., columns], y: bf16 [.., width]
//
// The same kernels as in packed_mxfp4.cu, where they are told; how codes and scales lie is in packed/ggml.cuh.
// Bytes: rows * columns * 8.5 / 8, as told there.
// 2 * rows * columns operations a position. Share of the roofline: not measured yet.
#include "packed/ggml.cuh"
#include "packed/skinny.cuh"
#include "packed/tiled.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) packed_skinny_q8(PACKED_PARAMETERS) { packed::skinny<packed::Q8>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled64_q8(PACKED_PARAMETERS) { packed::tiled<packed::Q8, 1>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled128_q8(PACKED_PARAMETERS) { packed::tiled<packed::Q8, 2>(PACKED_OPERANDS); }
