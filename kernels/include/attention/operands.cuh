// What every attention kernel is told, and which positions a query sees.
#pragma once
#include "device.cuh"

namespace attention {

constexpr float LOG2E = 1.44269504088896341f;
// Positions that always lie in one block of the cache, side by side.
constexpr uint32_t RUN = 16;
// Words of a work item.
constexpr uint32_t ITEM_WORDS = 8;
// In place of the first part's number: the item is not split.
constexpr uint32_t WHOLE = 0xffffffffu;

// The operands of a launch. See attention_decode.cu for their shapes.
template <typename Kv> struct Operands {
    bf16* out;
    const bf16* q;
    const Kv* k;
    const Kv* v;
    const uint32_t* blocks;
    const uint32_t* items;
    uint32_t* tickets;
    float* partials;
    const float* sinks;
    uint32_t heads, kv_heads, block_size, num_blocks;
    // Positions before and with its own that a query sees at most; 0: all.
    uint32_t window;
    // A query sees only its own of the chunks of this many positions; 0: there are none.
    uint32_t chunk;
    // A score is q . k * log2_scale, in units of log2; if cap_scale is not 0, tanh(q . k * cap_scale) * log2_scale.
    float log2_scale, cap_scale, v_scale;

    __device__ __forceinline__ uint32_t group() const { return heads / kv_heads; }

    // The earliest position that the query at `position` sees; it sees all from there to its own.
    __device__ __forceinline__ uint32_t first_visible(uint32_t position) const {
        uint32_t first = 0;
        if (window != 0 && position >= window) {
            first = position + 1 - window;
        }
        if (chunk != 0) {
            first = max(first, position / chunk * chunk);
        }
        return first;
    }
};

// A piece of work, as the plan laid it out: all heads of one KV head's group at some neighbouring query tokens of a
// sequence, over the positions begin .. end. Its rows are (token, head of the group), heads fastest.
struct Item {
    uint32_t token;     // the first query's row in q and out
    uint32_t tokens;    // how many
    uint32_t position;  // of the first query
    uint32_t begin, end;
    uint32_t table;       // logical block b is blocks[table + b] (wraps around)
    uint32_t first_part;  // WHOLE, or the number of the sequence's first part among all parts
    uint32_t part, parts;

    __device__ __forceinline__ uint32_t last_position() const { return position + tokens - 1; }
};

__device__ __forceinline__ Item load_item(const uint32_t* items, uint32_t index) {
    const Vec16 a = load16_readonly(items + index * ITEM_WORDS);
    const Vec16 b = load16_readonly(items + index * ITEM_WORDS + 4);
    Item item{a.words[0], a.words[1], a.words[2], a.words[3], b.words[0], b.words[1], b.words[2], 0, 0};
    item.part = b.words[3] & 0xffff;
    item.parts = b.words[3] >> 16;
    return item;
}

// Where RUN positions lie side by side. It is looked up long before it is needed, and nothing is computed from the
// block's number in between, so that no thread waits for it.
struct RunAddress {
    uint32_t block, offset;

    // The row of the cache, of D elements, where they begin.
    template <typename Kv> __device__ __forceinline__ uint32_t row(const Operands<Kv>& to, uint32_t kv_head) const {
        DEVICE_ASSERT(block < to.num_blocks, "a block table leads outside the cache");
        return (block * to.kv_heads + kv_head) * to.block_size + offset;
    }
};

// Of the positions from `position`, a multiple of RUN, on.
template <typename Kv>
__device__ __forceinline__ RunAddress look_up(const Operands<Kv>& to, uint32_t table, uint32_t position) {
    const uint32_t logical = position / to.block_size;
    return {__ldg(to.blocks + (table + logical)), position - logical * to.block_size};
}

// 2^x to two units in the last place; results below 2^-126 are 0. exp2f spends three more instructions on those.
__device__ __forceinline__ float fast_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// Within 1e-6 of tanh.
__device__ __forceinline__ float fast_tanh(float x) {
    return 1.0f - __fdividef(2.0f, 1.0f + fast_exp2(2 * LOG2E * x));
}

}  // namespace attention
