// Attention of many query tokens: a block has 128 rows (query token x head of the group), 64 where D is 256, and its
// warps share tiles of 64 positions. While a tile's keys are multiplied its values arrive, and while its values are,
// the next tile's keys (arXiv:2307.08691). With two blocks on a multiprocessor one computes while the other waits.
#pragma once
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

// Begins to copy the tile of positions from `start`; rows[i] is where run i lies in the cache.
template <typename Kv, int D>
__device__ __forceinline__ void copy_tile(unsigned char* tile, const Kv* cache, const uint32_t* rows, uint32_t start,
                                          uint32_t first, uint32_t end) {
    using Shape = Prefill<Kv, D>;
    using T = Tile<Kv, D>;
#pragma unroll 4
    for (uint32_t i = threadIdx.x; i < Shape::TILE * T::PIECES; i += Shape::THREADS) {
        const uint32_t r = i / T::PIECES, piece = i % T::PIECES;
        const bool valid = start + r >= first && start + r < end;
        const unsigned char* from = reinterpret_cast<const unsigned char*>(cache) +
                                    (static_cast<size_t>(rows[r / RUN]) + r % RUN) * T::ROW_BYTES + piece * 16;
        cp_async_16(tile + T::offset(r, piece), from, valid);
    }
}

// By the first threads of the block: where the tile's runs lie. Runs that hold nothing visible are in no block.
template <typename Kv>
__device__ __forceinline__ void find_runs(uint32_t* rows, uint32_t runs, const Operands<Kv>& to, const Item& item,
                                          uint32_t kv_head, uint32_t start, uint32_t first) {
    if (threadIdx.x < runs) {
        const uint32_t position = start + threadIdx.x * RUN;
        const bool visible = position + RUN > first && position < item.end;
        rows[threadIdx.x] = visible ? cache_row(to, item.table, kv_head, position) : 0;
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
    __shared__ uint32_t rows[2][RUNS];
    DYN_SMEM(unsigned char, shared);
    unsigned char* queries = shared;
    unsigned char* keys = queries + Shape::QUERY_BYTES;
    unsigned char* values = keys + Shape::TILE_BYTES;

    const Item item = load_item(to.items, index);
    const uint32_t first = to.first_visible(item.position), last_first = to.first_visible(item.last_position());
    const uint32_t warp_row = warp_id() * M * 16;
    const float log2_scale = to.log2_scale();

    find_runs(rows[0], RUNS, to, item, kv_head, item.begin, first);
    stage_queries<Kv, D>(queries, to, item, kv_head);
    __syncthreads();
    copy_tile<Kv, D>(keys, to.k, rows[0], item.begin, first, item.end);
    cp_async_commit();

    const auto query = [&](uint32_t(&a)[4], int m, int step) {
        const uint32_t row = warp_row + 16 * m + lane_id() % 16;
        ldmatrix_x4(a, queries + Tile<bf16, D>::offset(row, 2 * step + lane_id() / 16));
    };
    Softmax<Kv, D, M> softmax;
    softmax.clear();
    uint32_t turn = 0;
    for (uint32_t start = item.begin; start < item.end; start += TILE, turn ^= 1) {
        cp_async_wait<0>();
        __syncthreads();  // The tile's keys are there, and all warps are done with the values before.
        copy_tile<Kv, D>(values, to.v, rows[turn], start, first, item.end);
        cp_async_commit();
        find_runs(rows[turn ^ 1], RUNS, to, item, kv_head, start + TILE, first);
        Fragment<M, 2 * RUNS> scores;
        multiply_keys<Kv, D, M, RUNS>(scores, keys, query);
        cp_async_wait<0>();
        __syncthreads();  // Its values are there, and all warps are done with the keys.
        if (start + TILE < item.end) {
            copy_tile<Kv, D>(keys, to.k, rows[turn ^ 1], start + TILE, first, item.end);
        }
        cp_async_commit();
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
    // Loaded again, so that what only the end needs takes no registers before it.
    finish<D, Shape::ROWS, 1, Shape::THREADS>(to, load_item(to.items, index), kv_head, parts);
}

}  // namespace attention
