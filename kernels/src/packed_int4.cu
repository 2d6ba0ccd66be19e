// Products of bf16 activations with 4-bit weights, (code - zero) * scale, with a scale and a zero for each group of
// columns.
//
//     y[p, n] = act(sum over k of x[p, k] * w[e(p), n, k] + bias[e(p), n])     x: bf16 [.., columns], y: bf16 [.., width]
//
// The same kernels as in packed_mxfp4.cu, where they are told.
// Bytes: rows * columns * (1 / 2 + 4 / group), as told there.
// 2 * rows * columns operations a position. Share of the roofline: not measured yet.
#include "packed/skinny.cuh"
#include "packed/tiled.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) packed_skinny_int4(PACKED_PARAMETERS) { packed::skinny<packed::Int4>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled64_int4(PACKED_PARAMETERS) { packed::tiled<packed::Int4, 1>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled128_int4(PACKED_PARAMETERS) { packed::tiled<packed::Int4, 2>(PACKED_OPERANDS); }
