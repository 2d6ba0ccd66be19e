// What cuBLASLt's products of fp8 matrices are handed: activations as fp8 under a scale for each row, and packed weights row
// by row.
//
//     scales[t] = max over k of |x[t, k]| / 448, codes[t, k] = e4m3(x[t, k] / scales[t])
//     rows[n, k] = the code of w[n, k]
//
// x: bf16 [tokens, columns], codes: e4m3 [padded_tokens, columns], scales: f32 [padded_tokens], where tokens that do not
// exist are zeros; columns % 16 == 0.
//
// Bytes of an activation: 2 read, 1 written; a row's second reading is from the cache. Of a weight: 1 read, 1 written.
// Share of the roofline: not measured yet.
#include "packed/formats.cuh"
#include "rows.cuh"

using packed::CHUNK;
using packed::PIECE;
using packed::TILE_ROWS;

constexpr float MOST_E4M3 = 448.0f;
// What keeps the factor of a row of zeros finite.
constexpr float LEAST_SCALE = 1e-30f;
// Elements of a vector of codes.
constexpr uint32_t CODES = 16;

struct Activations {
    float low[8], high[8];
};

__device__ __forceinline__ Activations load_activations(const bf16* from) {
    Activations x;
    unpack8_bf16(load16_readonly(from), x.low);
    unpack8_bf16(load16_readonly(from + 8), x.high);
    return x;
}

__device__ __forceinline__ uint32_t pack4_e4m3(const float* x, float factor) {
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(x[0] * factor, x[1] * factor), __NV_SATFINITE, __NV_E4M3);
    const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(x[2] * factor, x[3] * factor), __NV_SATFINITE, __NV_E4M3);
    return low | high << 16;
}

// A block a row. What is not a number is none in its code, and an infinity makes the scale infinite, so neither becomes a
// number.
extern "C" __global__ void __launch_bounds__(512) quantize_rows_fp8(uint8_t* codes, float* scales, const bf16* x, uint32_t tokens, uint32_t columns) {
    __shared__ float partials[MOST_WARPS];
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * columns;
    const uint32_t first = threadIdx.x * CODES, step = blockDim.x * CODES;
    if (blockIdx.x >= tokens) {
        for (uint32_t i = first; i < columns; i += step) {
            store16(codes + at + i, {{0, 0, 0, 0}});
        }
        if (threadIdx.x == 0) {
            scales[blockIdx.x] = 0.0f;
        }
        return;
    }
    float largest = 0.0f;
    for (uint32_t i = first; i < columns; i += step) {
        const Activations v = load_activations(x + at + i);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            largest = fmaxf(largest, fmaxf(fabsf(v.low[e]), fabsf(v.high[e])));
        }
    }
    const float scale = fmaxf(block_max(largest, partials) / MOST_E4M3, LEAST_SCALE);
    const float factor = 1.0f / scale;
    for (uint32_t i = first; i < columns; i += step) {
        const Activations v = load_activations(x + at + i);
        store16(codes + at + i, {{pack4_e4m3(v.low, factor), pack4_e4m3(v.low + 4, factor), pack4_e4m3(v.high, factor),
                                  pack4_e4m3(v.high + 4, factor)}});
    }
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = scale;
    }
}

// Codes of a row in the order of its columns, of those that packed/formats.cuh wants.
__device__ __forceinline__ uint32_t in_order(uint32_t codes) { return __byte_perm(codes, 0, 0x3120); }

// blockIdx.x is a tile of 16 rows; a warp takes 64 of their columns. A lane holds 8 codes of a row and of the one 8 further
// down; of two neighbours, one takes the 16 codes of the upper row, and the other those of the lower.
extern "C" __global__ void __launch_bounds__(256) unpack_rows_fp8(uint8_t* rows_out, const uint8_t* codes, uint32_t rows, uint32_t columns) {
    const uint32_t chunks = packed::Extent{rows, columns}.chunks();
    const uint32_t chunk = blockIdx.y * (blockDim.x / WARP_SIZE) + warp_id();
    if (chunk >= chunks) {
        return;
    }
    const uint8_t* from = codes + (static_cast<uint64_t>(blockIdx.x) * chunks + chunk) * packed::CHUNK_BYTES<packed::Fp8>;
    const uint32_t lane = lane_id(), odd = lane % 2;
    const uint32_t row = blockIdx.x * TILE_ROWS + lane / 4 + 8 * odd;
#pragma unroll
    for (uint32_t piece = 0; piece < 2; piece++) {
        const Vec16 held = load16_once(from + piece * 512 + lane * 16);
        Vec16 whole;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t upper = in_order(held.words[i]), lower = in_order(held.words[2 + i]);
            const uint32_t other = __shfl_xor_sync(FULL_WARP, odd ? upper : lower, 1);
            whole.words[i] = odd ? other : upper;
            whole.words[2 + i] = odd ? lower : other;
        }
        const uint32_t column = chunk * CHUNK + piece * PIECE + lane % 4 / 2 * CODES;
        if (row < rows && column < columns) {
            store16(rows_out + static_cast<uint64_t>(row) * columns + column, whole);
        }
    }
}
