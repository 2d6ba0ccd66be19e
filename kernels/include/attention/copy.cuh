// Copies of keys and values from the paged cache to shared memory.
#pragma once
#include "attention/operands.cuh"
#include "attention/tile.cuh"

namespace attention {

// A warp begins to copy the RUN positions from `position`, which lie side by side from `row` of the cache on. Those
// before `first` and from `end` on become zeros, since nobody may have written them.
template <typename Kv, int D>
__device__ __forceinline__ void copy_run(unsigned char* tile, const Kv* cache, uint32_t row, uint32_t position,
                                         uint32_t first, uint32_t end) {
    using T = Tile<Kv, D>;
    constexpr int ROUNDS = T::PIECES * RUN / WARP_SIZE;
    const unsigned char* from =
        reinterpret_cast<const unsigned char*>(cache) + static_cast<size_t>(row) * T::ROW_BYTES + lane_id() * 16;
    const auto copy = [&](int round, bool valid) {
        const uint32_t piece = round * WARP_SIZE + lane_id();
        cp_async_16(tile + T::offset(piece / T::PIECES, piece % T::PIECES), from + round * WARP_SIZE * 16, valid);
    };
    if (position >= first && position + RUN <= end) {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            copy(round, true);
        }
    } else {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const uint32_t at = position + (round * WARP_SIZE + lane_id()) / T::PIECES;
            copy(round, at >= first && at < end);
        }
    }
}

}  // namespace attention
