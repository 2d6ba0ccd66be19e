// Attention of up to 16 rows (query token x head of the group): decode steps, and the few tokens of a draft or a short
// tail. All of the block's warps have all rows; each passes over runs of 16 positions of its own, which it copies to
// shared memory for itself, so that warps never wait for each other before the end.
#pragma once
#include "attention/copy.cuh"
#include "attention/finish.cuh"

namespace attention {

template <typename Kv, int D> struct Decode {
    static constexpr int ROWS = 16;
    static constexpr int TILE_BYTES = RUN * Tile<Kv, D>::ROW_BYTES;
    // Keys and values of a run.
    static constexpr int STAGE_BYTES = 2 * TILE_BYTES;
    static constexpr int STAGES = STAGE_BYTES <= 4096 ? 4 : 2;
    static constexpr int WARPS = STAGE_BYTES <= 8192 ? 4 : 2;
    static constexpr int THREADS = WARPS * WARP_SIZE;
    static constexpr uint32_t STRIDE = WARPS * RUN;
    using Parts = SharedParts<D, ROWS, WARPS>;
};

// A lane's operands of the queries, columns in the order that load_keys wants.
template <typename Kv, int D>
__device__ __forceinline__ void load_queries(uint32_t (&a)[D / 16][4], const Operands<Kv>& to, const Item& item,
                                             uint32_t kv_head) {
    const uint32_t group = to.group(), t = lane_id() % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const uint32_t row = lane_id() / 4 + 8 * half;
        const bool exists = row < item.tokens * group;
        const size_t at = static_cast<size_t>(item.token + row / group) * to.heads + kv_head * group + row % group;
        const bf16* q = to.q + at * D;
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            uint2 pair = make_uint2(0, 0);
            if (exists && sizeof(Kv) == 2) {
                pair.x = *reinterpret_cast<const uint32_t*>(q + 16 * step + 2 * t);
                pair.y = *reinterpret_cast<const uint32_t*>(q + 16 * step + 8 + 2 * t);
            } else if (exists) {
                const uint2 four = *reinterpret_cast<const uint2*>(q + 16 * step + 4 * t);
                pair = make_uint2(__byte_perm(four.x, four.y, 0x5410), __byte_perm(four.x, four.y, 0x7632));
            }
            a[step][half] = pair.x;
            a[step][half + 2] = pair.y;
        }
    }
}

template <typename Kv, int D> __device__ __forceinline__ void decode(const Operands<Kv>& to, uint32_t num_items) {
    using Shape = Decode<Kv, D>;
    constexpr int STAGES = Shape::STAGES, TILE_BYTES = Shape::TILE_BYTES;
    constexpr uint32_t STRIDE = Shape::STRIDE;
    const uint32_t index = blockIdx.x / to.kv_heads, kv_head = blockIdx.x % to.kv_heads;
    const Item item = load_item(to.items, index);
    if (index >= num_items) {
        return;
    }
    DYN_SMEM(unsigned char, shared);
    const uint32_t first = to.first_visible(item.position), last_first = to.first_visible(item.last_position());
    unsigned char* ring = shared + warp_id() * STAGES * Shape::STAGE_BYTES;

    uint32_t position = item.begin + warp_id() * RUN;
    const auto find = [&](RunAddress& run, uint32_t at) {
        if (at < item.end) {
            run = look_up(to, item.table, at);
        }
    };
    const auto copy = [&](unsigned char* tile, const Kv* cache, const RunAddress& run, uint32_t at) {
        if (at < item.end) {
            copy_run<Kv, D>(tile, cache, run.row(to, kv_head), at, first, item.end);
        }
        cp_async_commit();
    };
    RunAddress runs[STAGES] = {}, next{};
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
        find(runs[stage], position + stage * STRIDE);
    }
    find(next, position + STAGES * STRIDE);
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
        unsigned char* keys = ring + stage * Shape::STAGE_BYTES;
        copy(keys, to.k, runs[stage], position + stage * STRIDE);
        copy(keys + TILE_BYTES, to.v, runs[stage], position + stage * STRIDE);
    }
    uint32_t queries[D / 16][4];
    load_queries<Kv, D>(queries, to, item, kv_head);
    const auto query = [&](uint32_t(&a)[4], int, int step) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i] = queries[step][i];
        }
    };

    Softmax<Kv, D, 1> softmax;
    softmax.clear();
    for (int stage = 0; position < item.end; position += STRIDE, stage = stage + 1 == STAGES ? 0 : stage + 1) {
        unsigned char* keys = ring + stage * Shape::STAGE_BYTES;
        unsigned char* values = keys + TILE_BYTES;
        const uint32_t ahead = position + STAGES * STRIDE;
        Fragment<1, 2> scores;
        cp_async_wait<2 * STAGES - 1>();
        __syncwarp();
        multiply_keys<Kv, D, 1, 1>(scores, keys, query);
        __syncwarp();
        copy(keys, to.k, next, ahead);
        if (to.cap_scale != 0) {
            cap(scores, to.cap_scale);
        }
        if (position < last_first || position + RUN > item.position) {
            mask(scores, to, item, 0, position);
        }
        softmax.add(scores, to.log2_scale);
        cp_async_wait<2 * STAGES - 1>();
        __syncwarp();
        softmax.template multiply_values<1>(scores, values);
        __syncwarp();
        copy(values, to.v, next, ahead);
        find(next, ahead + STRIDE);
    }
    __syncthreads();
    auto& parts = *reinterpret_cast<typename Shape::Parts*>(shared);
    parts.store(warp_id(), 0, softmax, to.log2_scale);
    __syncthreads();
    finish<D, Shape::ROWS, Shape::WARPS, Shape::THREADS>(to, item, kv_head, parts);
}

}  // namespace attention
