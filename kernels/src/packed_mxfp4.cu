// Products of bf16 activations with MXFP4 weights: E2M1 codes, and a power of two for each 32 of them (OCP Microscaling
// Formats, v1.0).
//
//     y[p, n] = act(sum over k of x[p, k] * w[e(p), n, k] + bias[e(p), n])     x: bf16 [.., columns], y: bf16 [.., width]
//
// `skinny` is for at most 8 positions an expert, the others for more, up to 64 and 128 of an item. With a plan (route.cu)
// the positions are those of a mixture's tokens, each with its expert; without one there is one matrix, and position p
// is token p. Biases, an activation that takes rows n and rows / 2 + n for gate and up, and numbering of rows by slots are
// options of all of them: see packed/operands.cuh; how codes lie is in packed/formats.cuh.
//
// Bytes: 17 / 32 * rows * columns of each expert that has positions, once where an item holds all of them, and x once a
// block of rows.
// 2 * rows * columns operations a position. Share of the roofline: not measured yet.
#include "packed/skinny.cuh"
#include "packed/tiled.cuh"

extern "C" __global__ void __launch_bounds__(256, 3) packed_skinny_mxfp4(PACKED_PARAMETERS) { packed::skinny<packed::Mxfp4>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled64_mxfp4(PACKED_PARAMETERS) { packed::tiled<packed::Mxfp4, 1>(PACKED_OPERANDS); }
extern "C" __global__ void __launch_bounds__(256, 2) packed_tiled128_mxfp4(PACKED_PARAMETERS) { packed::tiled<packed::Mxfp4, 2>(PACKED_OPERANDS); }
