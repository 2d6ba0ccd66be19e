// What kernels that give a block to a row share.
#pragma once

#include "device.cuh"

constexpr int MOST_WARPS = 16;

// The sum over a block of at most MOST_WARPS warps; every thread gets it, in the same order of additions. Each call
// within a kernel needs its own `partials`, in shared memory.
__device__ __forceinline__ float block_sum(float value, float (&partials)[MOST_WARPS]) {
    value = warp_sum(value);
    if (lane_id() == 0) {
        partials[warp_id()] = value;
    }
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / WARP_SIZE;
    return warp_sum(lane_id() < warps ? partials[lane_id()] : 0.0f);
}

// The largest value of a block likewise; values are at least 0.
__device__ __forceinline__ float block_max(float value, float (&partials)[MOST_WARPS]) {
    value = warp_max(value);
    if (lane_id() == 0) {
        partials[warp_id()] = value;
    }
    __syncthreads();
    const int warps = static_cast<int>(blockDim.x) / WARP_SIZE;
    return warp_max(lane_id() < warps ? partials[lane_id()] : 0.0f);
}
