// Small kernels that keep CUDA's rules, or break one of them on purpose: `selftest_<rule>` keeps it, `.._broken` does not.
#include "device.cuh"

// out[i] = 2 * in[i], for all i below n.
extern "C" __global__ void __launch_bounds__(256) selftest_double(float* out, const float* in, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = 2.0f * in[i];
}

// Each thread gets its neighbour's number, through static shared memory. BARRIER: with the barrier that this needs.
template <bool BARRIER> __device__ void rotate(int* out) {
    __shared__ int all[256];
    all[threadIdx.x] = threadIdx.x;
    if (BARRIER) __syncthreads();
    out[threadIdx.x] = all[(threadIdx.x + 1) % blockDim.x];
}

extern "C" __global__ void selftest_rotate(int* out) { rotate<true>(out); }

extern "C" __global__ void selftest_rotate_broken(int* out) { rotate<false>(out); }

// Reuses shared memory in a loop; the second barrier keeps the next round's write behind this round's reads.
template <bool BARRIER> __device__ void rounds(int* out) {
    DYN_SMEM(int, all);
    int sum = 0;
    for (int round = 0; round < 3; round++) {
        all[threadIdx.x] = threadIdx.x * round;
        __syncthreads();
        sum += all[(threadIdx.x + 33) % blockDim.x];
        if (BARRIER) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

extern "C" __global__ void selftest_rounds(int* out) { rounds<true>(out); }

extern "C" __global__ void selftest_rounds_broken(int* out) { rounds<false>(out); }

// Within a warp __syncwarp is enough; a shuffle orders nothing.
template <bool SYNC> __device__ void within_warp(int* out) {
    __shared__ int all[64];
    all[threadIdx.x] = threadIdx.x;
    if (SYNC) __syncwarp();
    const int other = all[threadIdx.x ^ 1];
    out[threadIdx.x] = other + warp_sum(0);
}

extern "C" __global__ void selftest_syncwarp(int* out) { within_warp<true>(out); }

extern "C" __global__ void selftest_syncwarp_broken(int* out) { within_warp<false>(out); }

// Two halves of a block hand over through named barriers.
extern "C" __global__ void selftest_named_barrier(int* out) {
    __shared__ int all[64];
    if (warp_id() < 2) {
        all[threadIdx.x] = threadIdx.x;
        named_barrier(1, 128);
    } else {
        named_barrier(1, 128);
        out[threadIdx.x - 64] = all[127 - threadIdx.x];
    }
}

// The lower half of a warp shuffles among itself; the broken one names all lanes, of which only half come.
extern "C" __global__ void selftest_mask(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0xffffu, static_cast<int>(threadIdx.x), 1);
}

extern "C" __global__ void selftest_mask_broken(int* out) {
    if (threadIdx.x < 16) out[threadIdx.x] = __shfl_xor_sync(0x00ffu, static_cast<int>(threadIdx.x), 1);
}

// The last warp has 16 lanes: a sum over 32 takes values of lanes that do not exist.
extern "C" __global__ void selftest_ragged_warp(int* out) {
    const unsigned here = __ballot_sync(0xffffffffu, 1);
    if (lane_id() == 0) out[warp_id()] = __popc(here);
}

extern "C" __global__ void selftest_ragged_warp_broken(int* out) {
    const int sum = warp_sum(1);
    if (lane_id() == 0) out[warp_id()] = sum;
}

// Reads one element beyond its input.
extern "C" __global__ void selftest_bounds_broken(float* out, const float* in, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = in[i] + in[i + 1];
}

// Writes one element beyond its dynamic shared memory of n floats.
extern "C" __global__ void selftest_shared_bounds_broken(float* out, int n) {
    DYN_SMEM(float, all);
    all[threadIdx.x + 1] = 1.0f;
    __syncthreads();
    if (threadIdx.x == 0) out[0] = all[n - 1];
}

// Sums static or dynamic shared memory of which only the first half was written.
extern "C" __global__ void selftest_poison(float* out) {
    __shared__ float fixed[64];
    DYN_SMEM(float, dynamic);
    if (threadIdx.x < 32) fixed[threadIdx.x] = dynamic[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = fixed[threadIdx.x];
    out[64 + threadIdx.x] = dynamic[threadIdx.x];
}

// Copies through shared memory by cp.async, two groups in flight. WAIT: for the group that is read.
template <int LEFT> __device__ void pipeline(float* out, const float* in, int tiles) {
    __shared__ __align__(16) float tile[2][128];
    cp_async_16(&tile[0][4 * threadIdx.x], in + 4 * threadIdx.x);
    cp_async_commit();
    for (int t = 0; t < tiles; t++) {
        const bool more = t + 1 < tiles;
        cp_async_16(&tile[(t + 1) % 2][4 * threadIdx.x], in + 128 * (t + 1) + 4 * threadIdx.x, more);
        cp_async_commit();
        cp_async_wait<LEFT>();
        __syncthreads();
        for (int i = threadIdx.x; i < 128; i += 32) out[128 * t + i] = tile[t % 2][i];
        __syncthreads();
    }
    cp_async_wait<0>();
}

extern "C" __global__ void selftest_cp_async(float* out, const float* in, int tiles) { pipeline<1>(out, in, tiles); }

extern "C" __global__ void selftest_cp_async_broken(float* out, const float* in, int tiles) {
    pipeline<2>(out, in, tiles);
}

// Half of the block waits at one barrier, half at another.
extern "C" __global__ void selftest_divergent_broken(int* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        out[threadIdx.x] = 1;
        __syncthreads();
    }
}

// Lanes wait for each other's masks; threads that ended no longer count.
extern "C" __global__ void selftest_deadlock_broken(int* out) {
    if (threadIdx.x % 2 == 0) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    out[threadIdx.x] = 1;
}

extern "C" __global__ void selftest_early_exit(int* out, int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    out[threadIdx.x] = __syncthreads_count(threadIdx.x % 2);
}

// Every block writes the same element.
extern "C" __global__ void selftest_block_race_broken(int* out) {
    if (threadIdx.x == 0) out[0] = blockIdx.x;
}

// In place, each block reading an element of the next one.
extern "C" __global__ void selftest_halo_broken(int* all) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int next = all[i + 1];
    __syncthreads();
    all[i] = next;
}

// The block that comes last adds up what all have published. FENCE: with the fence that publishing needs.
template <bool FENCE> __device__ void last_block_sums(int* out, int* partial, unsigned* arrived) {
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x + 1;
        if (FENCE) __threadfence();
        is_last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 1) {
        __threadfence();
        int sum = 0;
        for (int i = 0; i < gridDim.x; i++) sum += partial[i];
        *out = sum;
    }
}

extern "C" __global__ void selftest_last_block(int* out, int* partial, unsigned* arrived) {
    last_block_sums<true>(out, partial, arrived);
}

extern "C" __global__ void selftest_last_block_broken(int* out, int* partial, unsigned* arrived) {
    last_block_sums<false>(out, partial, arrived);
}

extern "C" __global__ void selftest_misaligned_broken(float* out, const float* in) {
    store16(out, load16(in + 1));
}

extern "C" __global__ void selftest_unwritten_broken(float* out, const float* in) { out[0] = in[0]; }

extern "C" __global__ void selftest_assert_broken(int* out, int n) {
    DEVICE_ASSERT(n < 10, "n is small");
    out[0] = n;
}

// Neighbouring bytes by different threads are different bytes.
extern "C" __global__ void selftest_bytes(unsigned char* out) {
    out[blockIdx.x * blockDim.x + threadIdx.x] = static_cast<unsigned char>(threadIdx.x);
}

// Counts of all kinds: votes, matches, reductions, atomics.
extern "C" __global__ void selftest_counts(int* out, int* table) {
    const int i = threadIdx.x;
    atomicAdd(&table[i % 4], 1);
    atomicMax(&table[4], i);
    out[i] = __popc(__match_any_sync(0xffffffffu, i / 8)) + __reduce_max_sync(0xffffffffu, i);
    out[64 + i] = __any_sync(0xffffffffu, i == 40) + 2 * __all_sync(0xffffffffu, i < 32);
    out[128 + i] = warp_prefix_sum(1) + 100 * __syncthreads_or(i == 63) + 1000 * __syncthreads_and(i < 63);
}

// Waits for a flag that nobody sets.
extern "C" __global__ void selftest_spin_broken(unsigned* flag) {
    while (atomicAdd(flag, 0u) == 0) {
    }
}
