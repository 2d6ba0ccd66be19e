// What a token's experts made of it, added up: the end of a mixture of experts.
//
//     out[t] = beside[t] + sum over j of weights[t, j] * parts[t, j]
//         parts: bf16 [tokens, top, hidden], weights: f32 [tokens, top] (none: 1), beside and out: bf16 [tokens, hidden]
//         (no beside: 0); hidden % 8 == 0
//
// Tokens from `num_tokens` on (none: there are no such) are padding, of which there are no parts: the sum is 0.
// Sums are in f32, in the order of j, then beside, and rounded once. Bytes: 2 * tokens * hidden * (top + 1), with beside
// (top + 2). Share of the roofline: not measured yet.
#include "device.cuh"

// blockIdx.x is the token, blockIdx.y the part of its row.
extern "C" __global__ void __launch_bounds__(256) combine_bf16(bf16* out, const bf16* parts, const float* weights, const bf16* beside, const uint32_t* num_tokens, uint32_t top, uint32_t hidden) {
    const uint32_t column = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= hidden) {
        return;
    }
    const uint64_t token = blockIdx.x;
    const uint32_t terms = num_tokens == nullptr || token < __ldg(num_tokens) ? top : 0;
    const bf16* from = parts + token * top * hidden + column;
    float sums[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (uint32_t j = 0; j < terms; j++) {
        float part[8];
        unpack8_bf16(load16(from + static_cast<uint64_t>(j) * hidden), part);
        const float weight = weights == nullptr ? 1.0f : __ldg(weights + token * top + j);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sums[i] = fmaf(weight, part[i], sums[i]);
        }
    }
    if (beside != nullptr) {
        float other[8];
        unpack8_bf16(load16(beside + token * hidden + column), other);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sums[i] += other[i];
        }
    }
    store16(out + token * hidden + column, pack8_bf16(sums));
}
