// Copies whole blocks of a layer's KV cache, for sequences that come to differ in a block they shared.
//
//     k_cache, v_cache   [num_blocks, block_bytes] of any dtype, block_bytes a multiple of 16
//     pairs              u32 [count, 2]: source and destination. No block is the destination of one pair and anything
//                        in another.
//
// Moves 4 * count * block_bytes (K and V, each read once and written once). Roofline share: not measured yet.
// One block of threads a pair and cache; four 16-byte loads a thread are under way before the first store.
#include "device.cuh"

namespace {

constexpr uint32_t THREADS = 256;
constexpr uint32_t UNROLL = 4;

}  // namespace

extern "C" __global__ void __launch_bounds__(256) block_copy(unsigned char* k_cache, unsigned char* v_cache, const uint32_t* pairs, uint32_t num_blocks, uint32_t block_bytes) {
    const uint32_t from = pairs[2 * blockIdx.x], to = pairs[2 * blockIdx.x + 1];
    DEVICE_ASSERT(from < num_blocks && to < num_blocks, "a pair leads outside the cache");
    unsigned char* cache = blockIdx.y == 0 ? k_cache : v_cache;
    const unsigned char* source = cache + static_cast<size_t>(from) * block_bytes;
    unsigned char* destination = cache + static_cast<size_t>(to) * block_bytes;
    for (uint32_t start = 16 * threadIdx.x; start < block_bytes; start += 16 * THREADS * UNROLL) {
        Vec16 v[UNROLL];
#pragma unroll
        for (uint32_t i = 0; i < UNROLL; i++) {
            const uint32_t at = start + 16 * THREADS * i;
            if (at < block_bytes) {
                v[i] = load16(source + at);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < UNROLL; i++) {
            const uint32_t at = start + 16 * THREADS * i;
            if (at < block_bytes) {
                store16(destination + at, v[i]);
            }
        }
    }
}
