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
    constexpr int ROUNDS = T::PIECES * RUN / WARP_SIZE, ROWS_A_ROUND = WARP_SIZE / T::PIECES;
    const uint32_t at = T::offset(lane_id() / T::PIECES, lane_id() % T::PIECES);
    const unsigned char* from =
        reinterpret_cast<const unsigned char*>(cache) + static_cast<size_t>(row) * T::ROW_BYTES + lane_id() * 16;
    const auto copy = [&](int round, bool valid) {
        cp_async_16(tile + T::move(at, round * ROWS_A_ROUND, 0), from + round * WARP_SIZE * 16, valid);
    };
    if (position >= first && position + RUN <= end) {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            copy(round, true);
        }
    } else {
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            const uint32_t here = position + round * ROWS_A_ROUND + lane_id() / T::PIECES;
            copy(round, here >= first && here < end);
        }
    }
}

}  // namespace attention
