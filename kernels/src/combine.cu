// What a token's experts made of it, added up: the end of a mixture of experts.
//
//     out[t] = sum over j of weights[t, j] * parts[t, j]      parts: bf16 [tokens, top, hidden], weights: f32 [tokens, top]
//                                                             (none: 1), out: bf16 [tokens, hidden]; hidden % 8 == 0
//
// Sums are in f32, in the order of j, and rounded once. Bytes: 2 * tokens * hidden * (top + 1). Share of the roofline: not
// measured yet.
#include "device.cuh"

// blockIdx.x is the token, blockIdx.y the part of its row.
extern "C" __global__ void __launch_bounds__(256) combine_bf16(bf16* out, const bf16* parts, const float* weights, uint32_t top, uint32_t hidden) {
    const uint32_t column = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= hidden) {
        return;
    }
    const uint64_t token = blockIdx.x;
    const bf16* from = parts + token * top * hidden + column;
    float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (uint32_t j = 0; j < top; j++) {
        float part[8];
        unpack8_bf16(load16(from + static_cast<uint64_t>(j) * hidden), part);
        const float weight = weights == nullptr ? 1.0f : __ldg(weights + token * top + j);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sums[i] = fmaf(weight, part[i], sums[i]);
        }
    }
    store16(out + token * hidden + column, pack8_bf16(sums));
}
