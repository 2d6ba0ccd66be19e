// Products of bf16 activations with bf16 weights.
//
//     y[p, n] = act(sum over k of x[p, k] * w[e(p), n, k] + bias[e(p), n])     x: bf16 [.., columns], y: bf16 [.., width]
//
// The same kernels as in packed_mxfp4.cu, where they are told.
// Bytes: 2 * rows * columns, as told there.
// 2 * rows * columns operations a position. Share of the roofline: not measured yet.
#include "packed/skinny.cuh"
#include "packed/tiled.cuh"

extern "C" __global__ void __launch_bounds__(256, 2) packed_skinny_bf16(PACKED_PARAMETERS) { packed::skinny<packed::Bf16>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled64_bf16(PACKED_PARAMETERS) { packed::tiled<packed::Bf16, 1>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled128_bf16(PACKED_PARAMETERS) { packed::tiled<packed::Bf16, 2>(PACKED_OPERANDS); }
