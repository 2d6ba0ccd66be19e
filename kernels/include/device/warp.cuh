// What the 32 threads of a warp do together. All of them must call these.
#pragma once

constexpr uint32_t FULL_WARP = 0xffffffffu;
constexpr int WARP_SIZE = 32;

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x % WARP_SIZE); }

__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x / WARP_SIZE); }

// The sum over a warp, or over each group of WIDTH neighbouring lanes; every lane gets it.
template <int WIDTH = 32, typename T> __device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(FULL_WARP, value, offset);
    }
    return value;
}

template <int WIDTH = 32, typename T> __device__ __forceinline__ T warp_max(T value) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(FULL_WARP, value, offset);
        value = other > value ? other : value;
    }
    return value;
}

template <int WIDTH = 32, typename T> __device__ __forceinline__ T warp_min(T value) {
#pragma unroll
    for (int offset = WIDTH / 2; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(FULL_WARP, value, offset);
        value = other < value ? other : value;
    }
    return value;
}

// The sum of this lane's value and those of all lanes before it.
template <typename T> __device__ __forceinline__ T warp_prefix_sum(T value) {
#pragma unroll
    for (int offset = 1; offset < WARP_SIZE; offset *= 2) {
        const T other = __shfl_up_sync(FULL_WARP, value, offset);
        value += lane_id() >= offset ? other : T(0);
    }
    return value;
}

template <typename T> __device__ __forceinline__ T warp_broadcast(T value, int from_lane) {
    return __shfl_sync(FULL_WARP, value, from_lane);
}

// A barrier among `threads` threads of the block (a multiple of 32), by whole warps; `id` from 1 to 15.
__device__ __forceinline__ void named_barrier(int id, int threads) {
#ifdef __CUDACC__
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#else
    emu::named_barrier(id, threads);
#endif
}
