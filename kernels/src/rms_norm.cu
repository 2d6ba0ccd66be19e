// Root mean square normalisation (arXiv:1910.07467) of rows, alone and fused with the residual additions around it.
//
//     norm(x, w) = x / sqrt(mean(x^2) + eps) * w
//     rms_norm:       out = norm(x, weight)                                          out may be x
//     add_rms_norm:   residual = residual + branch;                normed = norm(residual, weight)
//     sandwich_norm:  residual = residual + norm(branch, post);    normed = norm(residual, weight)     normed may be branch
//
// Rows: bf16 [rows, hidden], hidden % 8 == 0 and at most 16384. Weights: f32 [hidden]. All arithmetic is in f32; the new
// residual is rounded to bf16 once, and what is normalised is the rounded value, as a later layer would read it.
//
// One block a row, which stays in registers: 4 vectors of 8 a thread. All loads come before the first use, and weights
// before the barrier of the sum, so that a single row waits for memory once (twice in sandwich_norm). A row's bits depend
// on the row alone.
//
// Bytes: rows * hidden * 4 (rms_norm) or * 8 (the others), and the weights. Share of the roofline: not measured yet.
#include "rows.cuh"

// Vectors of 8 that a thread holds. Vector c of thread t is number t + c * blockDim.x of the row.
constexpr int HELD = 4;

struct Weights {
    Vec16 low[HELD];
    Vec16 high[HELD];
};

// Calls f(c, element) for each vector of this thread that is in the row.
template <typename F> __device__ __forceinline__ void for_each_vector(uint32_t hidden, F f) {
#pragma unroll
    for (int c = 0; c < HELD; c++) {
        const uint32_t element = 8 * (threadIdx.x + c * blockDim.x);
        if (element < hidden) {
            f(c, element);
        }
    }
}

__device__ __forceinline__ void load_weights(Weights& weights, const float* from, uint32_t hidden) {
    for_each_vector(hidden, [&](int c, uint32_t element) {
        weights.low[c] = load16_readonly(from + element);
        weights.high[c] = load16_readonly(from + element + 4);
    });
}

// 1 / sqrt(mean(row^2) + eps).
__device__ __forceinline__ float inverse_rms(const Vec16 (&row)[HELD], uint32_t hidden, float eps,
                                             float (&partials)[MOST_WARPS]) {
    float sum = 0.0f;
    for_each_vector(hidden, [&](int c, uint32_t) {
        float x[8];
        unpack8_bf16(row[c], x);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            sum += x[j] * x[j];
        }
    });
    return 1.0f / sqrtf(block_sum(sum, partials) / static_cast<float>(hidden) + eps);
}

// Vector c of the row, normalised.
__device__ __forceinline__ void normalize(const Vec16& row, const Weights& weights, int c, float scale,
                                          float (&out)[8]) {
    unpack8_bf16(row, out);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        const uint32_t weight = j < 4 ? weights.low[c].words[j % 4] : weights.high[c].words[j % 4];
        out[j] = out[j] * scale * __uint_as_float(weight);
    }
}

__device__ __forceinline__ void write_normalized(bf16* out, const Vec16 (&row)[HELD], const Weights& weights,
                                                 float scale, uint32_t hidden) {
    for_each_vector(hidden, [&](int c, uint32_t element) {
        float values[8];
        normalize(row[c], weights, c, scale, values);
        store16(out + element, pack8_bf16(values));
    });
}

__device__ __forceinline__ void load_row(Vec16 (&row)[HELD], const bf16* from, uint32_t hidden) {
    for_each_vector(hidden, [&](int c, uint32_t element) { row[c] = load16(from + element); });
}

// The sum of two vectors, rounded.
__device__ __forceinline__ Vec16 add(const Vec16& old, float (&addend)[8]) {
    float sum[8];
    unpack8_bf16(old, sum);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        sum[j] += addend[j];
    }
    return pack8_bf16(sum);
}

extern "C" __global__ void __launch_bounds__(512) rms_norm_bf16(bf16* out, const bf16* x, const float* weight, uint32_t hidden, float eps) {
    __shared__ float partials[MOST_WARPS];
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * hidden;
    Vec16 row[HELD];
    Weights weights;
    load_row(row, x + start, hidden);
    load_weights(weights, weight, hidden);
    const float scale = inverse_rms(row, hidden, eps, partials);
    write_normalized(out + start, row, weights, scale, hidden);
}

extern "C" __global__ void __launch_bounds__(512) add_rms_norm_bf16(bf16* normed, bf16* residual, const bf16* branch, const float* weight, uint32_t hidden, float eps) {
    __shared__ float partials[MOST_WARPS];
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * hidden;
    Vec16 row[HELD];
    Vec16 old[HELD];
    Weights weights;
    load_row(row, branch + start, hidden);
    load_row(old, residual + start, hidden);
    load_weights(weights, weight, hidden);
    for_each_vector(hidden, [&](int c, uint32_t element) {
        float addend[8];
        unpack8_bf16(row[c], addend);
        row[c] = add(old[c], addend);
        store16(residual + start + element, row[c]);
    });
    const float scale = inverse_rms(row, hidden, eps, partials);
    write_normalized(normed + start, row, weights, scale, hidden);
}

extern "C" __global__ void __launch_bounds__(512) sandwich_norm_bf16(bf16* normed, bf16* residual, const bf16* branch, const float* post, const float* weight, uint32_t hidden, float eps) {
    __shared__ float branch_partials[MOST_WARPS];
    __shared__ float partials[MOST_WARPS];
    const uint64_t start = static_cast<uint64_t>(blockIdx.x) * hidden;
    Vec16 row[HELD];
    Vec16 old[HELD];
    Weights weights;
    load_row(row, branch + start, hidden);
    load_row(old, residual + start, hidden);
    load_weights(weights, post, hidden);
    const float branch_scale = inverse_rms(row, hidden, eps, branch_partials);
    for_each_vector(hidden, [&](int c, uint32_t element) {
        float addend[8];
        normalize(row[c], weights, c, branch_scale, addend);
        row[c] = add(old[c], addend);
        store16(residual + start + element, row[c]);
    });
    load_weights(weights, weight, hidden);
    const float scale = inverse_rms(row, hidden, eps, partials);
    write_normalized(normed + start, row, weights, scale, hidden);
}
