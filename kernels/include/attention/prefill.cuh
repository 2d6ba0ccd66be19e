// Attention of many query tokens: a block has 128 rows (query token x head of the group), 64 where D is 256, and its
// warps share tiles of 64 positions. While a tile's keys are multiplied its values arrive, and while its values are,
// the next tile's keys (arXiv:2307.08691). With two blocks on a multiprocessor one computes while the other waits.
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
    static constexpr int RUNS = 4;
    static constexpr uint32_t TILE = RUNS * RUN;
    static constexpr int QUERY_BYTES = ROWS * D * 2;
    static constexpr int TILE_BYTES = TILE * Tile<Kv, D>::ROW_BYTES;
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
    unsigned char* keys = queries + Shape::QUERY_BYTES;
    unsigned char* values = keys + Shape::TILE_BYTES;

    // Kept in shared memory, so that what only the end needs takes no registers before it.
    __shared__ Item kept;
    if (threadIdx.x == 0) {
        kept = load_item(to.items, index);
    }
    __syncthreads();
    const Item item = kept;
    const uint32_t first = to.first_visible(item.position), last_first = to.first_visible(item.last_position());
    const uint32_t warp_row = warp_id() * M * 16;
    const float log2_scale = to.log2_scale();

    // A warp copies one of a tile's runs of positions. Those that hold nothing visible are in no block.
    static_assert(Shape::WARPS == RUNS);
    const uint32_t run_at = warp_id() * RUN;
    const auto find_row = [&](uint32_t start) {
        const uint32_t position = start + run_at;
        return position + RUN > first && position < item.end ? cache_row(to, item.table, kv_head, position) : 0;
    };
    const auto copy = [&](unsigned char* tile, const Kv* cache, uint32_t row, uint32_t start) {
        copy_run<Kv, D>(tile + run_at * Tile<Kv, D>::ROW_BYTES, cache, row, start + run_at, first, item.end);
        cp_async_commit();
    };

    uint32_t row = find_row(item.begin);
    copy(keys, to.k, row, item.begin);
    stage_queries<Kv, D>(queries, to, item, kv_head);
    const auto query = [&](uint32_t(&a)[4], int m, int step) {
        const uint32_t row = warp_row + 16 * m + lane_id() % 16;
        ldmatrix_x4(a, queries + Tile<bf16, D>::offset(row, 2 * step + lane_id() / 16));
    };
    Softmax<Kv, D, M> softmax;
    softmax.clear();
    for (uint32_t start = item.begin; start < item.end; start += TILE) {
        cp_async_wait<0>();
        __syncthreads();  // The tile's keys are there, and all warps are done with the values before.
        copy(values, to.v, row, start);
        row = find_row(start + TILE);
        Fragment<M, 2 * RUNS> scores;
        multiply_keys<Kv, D, M, RUNS>(scores, keys, query);
        cp_async_wait<0>();
        __syncthreads();  // Its values are there, and all warps are done with the keys.
        copy(keys, to.k, row, start + TILE);
        if (to.softcap > 0) {
            cap(scores, to.scale / to.softcap);
        }
        if (start < last_first || start + TILE > item.position) {
            mask(scores, to, item, warp_row, start);
        }
        softmax.add(scores, log2_scale);
        softmax.template multiply_values<RUNS>(scores, values);
    }
    __syncthreads();
    auto& parts = *reinterpret_cast<typename Shape::Parts*>(shared);
    parts.store(0, warp_row, softmax, log2_scale);
    __syncthreads();
    finish<D, Shape::ROWS, 1, Shape::THREADS>(to, kept, kv_head, parts);
}

}  // namespace attention
