// Attention of many query tokens: a block has 128 rows (query token x head of the group), 64 where D is 256, and its
// warps share tiles of 32 positions; while they multiply one, the next arrives. With two blocks on a multiprocessor one
// computes while the other waits. Tiles of 64 (arXiv:2307.08691) would read queries from shared memory half as often, a
// sixth of its traffic, but their scores take 32 more registers, and at D = 128 the compiler then spills.
#pragma once
#include "attention/copy.cuh"
#include "attention/finish.cuh"

namespace attention {

template <typename Kv, int D> struct Prefill {
    static constexpr int WARPS = 4;
    static constexpr int THREADS = WARPS * WARP_SIZE;
    // Times 16 rows a warp: each key and value that a warp reads from shared memory then serves as many products.
    static constexpr int M = D <= 128 ? 2 : 1;
    static constexpr int ROWS = WARPS * M * 16;
    static constexpr int RUNS = 2;
    static constexpr uint32_t TILE = RUNS * RUN;
    static constexpr int QUERY_BYTES = ROWS * D * 2;
    static constexpr int RUN_BYTES = RUN * Tile<Kv, D>::ROW_BYTES;
    // Keys and values of a tile. Two stages.
    static constexpr int STAGE_BYTES = 2 * RUNS * RUN_BYTES;
    // Each warp copies one run of keys or of values.
    static_assert(WARPS == 2 * RUNS);
    using Parts = SharedParts<D, ROWS, 1>;
};

// Copies an item's queries to shared memory, columns in the order that load_keys wants. Rows that are not there are 0.
template <typename Kv, int D>
__device__ __forceinline__ void stage_queries(unsigned char* tile, const Operands<Kv>& to, const Item& item,
                                              uint32_t kv_head) {
    using Shape = Prefill<Kv, D>;
    using T = Tile<bf16, D>;
    const uint32_t group = to.group();
    for (uint32_t i = threadIdx.x; i < Shape::ROWS * (D / 16); i += Shape::THREADS) {
        const uint32_t row = i / (D / 16), step = i % (D / 16);
        Vec16 first{}, second{};
        if (row < item.tokens * group) {
            const size_t at = static_cast<size_t>(item.token + row / group) * to.heads + kv_head * group + row % group;
            first = load16(to.q + at * D + 16 * step);
            second = load16(to.q + at * D + 16 * step + 8);
        }
        if constexpr (sizeof(Kv) == 1) {
            even_columns_first(first, second);
        }
        store16(tile + T::offset(row, 2 * step), first);
        store16(tile + T::offset(row, 2 * step + 1), second);
    }
}

template <typename Kv, int D> __device__ __forceinline__ void prefill(const Operands<Kv>& to, uint32_t num_items) {
    using Shape = Prefill<Kv, D>;
    constexpr int M = Shape::M, RUNS = Shape::RUNS;
    constexpr uint32_t TILE = Shape::TILE;
    const uint32_t index = blockIdx.x / to.kv_heads, kv_head = blockIdx.x % to.kv_heads;
    if (index >= num_items) {
        return;
    }
    DYN_SMEM(unsigned char, shared);
    unsigned char* queries = shared;
    unsigned char* stages = queries + Shape::QUERY_BYTES;

    // In shared memory, since no register is to spare.
    __shared__ Item item;
    if (threadIdx.x == 0) {
        item = load_item(to.items, index);
    }
    __syncthreads();
    const uint32_t first = to.first_visible(item.position), last_first = to.first_visible(item.last_position());
    const uint32_t warp_row = warp_id() * M * 16;

    // This warp's run of a tile: of keys or of values, from this position of the tile on.
    const Kv* cache = warp_id() < Shape::RUNS ? to.k : to.v;
    const uint32_t run_at = warp_id() % Shape::RUNS * RUN;
    RunAddress next{};
    const auto find_next = [&](uint32_t start) {
        const uint32_t position = start + run_at;
        // A run that holds nothing visible is in no block.
        if (position + RUN > first && position < item.end) {
            next = look_up(to, item.table, position);
        }
    };
    const auto copy = [&](uint32_t stage, uint32_t start) {
        unsigned char* tile = stages + stage * Shape::STAGE_BYTES + warp_id() * Shape::RUN_BYTES;
        copy_run<Kv, D>(tile, cache, next.row(to, kv_head), start + run_at, first, item.end);
        cp_async_commit();
    };
    find_next(item.begin);
    copy(0, item.begin);
    find_next(item.begin + TILE);
    stage_queries<Kv, D>(queries, to, item, kv_head);
    const auto query = [&](uint32_t(&a)[4], int m, int step) {
        using T = Tile<bf16, D>;
        const uint32_t at = T::offset(lane_id() % 16, lane_id() / 16) + warp_row * T::ROW_BYTES;
        ldmatrix_x4(a, queries + T::move(at, 16 * m, 2 * step));
    };
    Softmax<Kv, D, M> softmax;
    softmax.clear();
    uint32_t stage = 0;
    for (uint32_t start = item.begin; start < item.end; start += TILE, stage ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // The tile is there, and all warps are done with the one before.
        if (start + TILE < item.end) {
            copy(stage ^ 1, start + TILE);
        }
        find_next(start + 2 * TILE);
        const unsigned char* keys = stages + stage * Shape::STAGE_BYTES;
        const unsigned char* values = keys + Shape::RUNS * Shape::RUN_BYTES;
        Fragment<M, 2 * RUNS> scores;
        multiply_keys<Kv, D, M, RUNS>(scores, keys, query);
        if (to.cap_scale != 0) {
            cap(scores, to.cap_scale);
        }
        if (start < last_first || start + TILE > item.position) {
            mask(scores, to, item, warp_row, start);
        }
        softmax.add(scores, to.log2_scale);
        softmax.template multiply_values<RUNS>(scores, values);
    }
    __syncthreads();
    auto& parts = *reinterpret_cast<typename Shape::Parts*>(shared);
    parts.store(0, warp_row, softmax, to.log2_scale);
    __syncthreads();
    finish<D, Shape::ROWS, 1, Shape::THREADS>(to, item, kv_head, parts);
}

}  // namespace attention
