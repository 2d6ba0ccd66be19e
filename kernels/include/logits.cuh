// One sequence's row of logits: passes over it, the order of its tokens, and reductions over a block.
#pragma once

#include "device.cuh"

constexpr uint32_t NO_TOKEN = 0xffffffffu;

struct LogitRow {
    float* logits;
    uint32_t vocab;
    // A bit a token, or null if all are allowed.
    const uint32_t* allowed;

    __device__ __forceinline__ bool allows(uint32_t token) const {
        return allowed == nullptr || (allowed[token / 32] >> (token % 32) & 1);
    }
};

// Calls f(token, logit) for each token from `begin` up to `end`, shared out among the block's threads; a thread gets its
// tokens by rising id. Rows need not be aligned. Reads 64 bytes a thread before the first use.
template <typename F>
__device__ __forceinline__ void for_each_logit(const LogitRow& row, uint32_t begin, uint32_t end, F f) {
    constexpr int VECTORS = 4;
    const uint32_t misaligned = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(row.logits + begin) / 4 % 4);
    const uint32_t aligned = min(end, begin + (4 - misaligned) % 4);
    if (begin + threadIdx.x < aligned) {
        f(begin + threadIdx.x, row.logits[begin + threadIdx.x]);
    }
    const uint32_t body = aligned + (end - aligned) / 4 * 4;
    const uint32_t stride = 4 * blockDim.x;
    for (uint32_t at = aligned + 4 * threadIdx.x; at < body; at += VECTORS * stride) {
        Vec16 v[VECTORS];
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            if (at + i * stride < body) {
                v[i] = load16(row.logits + at + i * stride);
            }
        }
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            if (at + i * stride < body) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    f(at + i * stride + j, __uint_as_float(v[i].words[j]));
                }
            }
        }
    }
    if (body + threadIdx.x < end) {
        f(body + threadIdx.x, row.logits[body + threadIdx.x]);
    }
}

// A token's place in the order of likelihood: larger is likelier, and of equals the lower id; both zeros are equal.
__device__ __forceinline__ uint64_t rank_key(float logit, uint32_t token) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(~token);
}

__device__ __forceinline__ float logit_of_key(uint64_t key) {
    const uint32_t ordered = static_cast<uint32_t>(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

__device__ __forceinline__ uint32_t token_of_key(uint64_t key) { return ~static_cast<uint32_t>(key); }

// A token and what it is chosen by. Aligned, to be moved as a whole.
template <typename T> struct alignas(2 * sizeof(T)) Choice {
    T value;
    uint32_t token;
};

template <typename T> __device__ __forceinline__ Choice<T> no_choice() {
    return {static_cast<T>(-INFINITY), NO_TOKEN};
}

// The larger; of equals the lower id.
struct Better {
    template <typename T> __device__ __forceinline__ Choice<T> operator()(const Choice<T>& a, const Choice<T>& b) const {
        return b.value > a.value || (b.value == a.value && b.token < a.token) ? b : a;
    }
};

struct Sum {
    template <typename T> __device__ __forceinline__ T operator()(const T& a, const T& b) const { return a + b; }
};

template <typename T> __device__ __forceinline__ T from_lane(const T& value, int offset) {
    return __shfl_xor_sync(FULL_WARP, value, offset);
}

template <typename T> __device__ __forceinline__ Choice<T> from_lane(const Choice<T>& choice, int offset) {
    return {from_lane(choice.value, offset), from_lane(choice.token, offset)};
}

// All threads' values in one; every thread gets it. The operation may be in any order.
template <typename T, typename Op> __device__ __forceinline__ T block_reduce(T value, Op op) {
    constexpr int MOST_WARPS = 16;
    __shared__ T partials[MOST_WARPS];
#pragma unroll
    for (int offset = WARP_SIZE / 2; offset > 0; offset /= 2) {
        value = op(value, from_lane(value, offset));
    }
    if (lane_id() == 0) {
        partials[warp_id()] = value;
    }
    __syncthreads();
    value = partials[0];
    for (int warp = 1; warp < static_cast<int>(blockDim.x) / WARP_SIZE; warp++) {
        value = op(value, partials[warp]);
    }
    __syncthreads();
    return value;
}
