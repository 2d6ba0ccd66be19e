// Queries made longer with their position, so that the softmax over more keys stays as sharp (arXiv:2501.19399).
//
//     q[t] = q[t] * (ln(1 + floor((position[t] + 1) / floor_scale)) * attn_scale + 1)
//
// q: bf16 [tokens, width], in place; positions: u32 [tokens]; width % 8 == 0. Bytes: 4 for each element of q. Share of the
// roofline: not measured yet.
#include "device.cuh"

// blockIdx.x is the token, blockIdx.y the part of its row.
extern "C" __global__ void __launch_bounds__(256) scale_queries_bf16(bf16* q, const uint32_t* positions, uint32_t width, float floor_scale, float attn_scale) {
    const uint32_t column = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= width) {
        return;
    }
    const float position = static_cast<float>(__ldg(positions + blockIdx.x));
    const float factor = log1pf(floorf((position + 1.0f) / floor_scale)) * attn_scale + 1.0f;
    bf16* at = q + static_cast<uint64_t>(blockIdx.x) * width + column;
    float values[8];
    unpack8_bf16(load16(at), values);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        values[i] *= factor;
    }
    store16(at, pack8_bf16(values));
}
