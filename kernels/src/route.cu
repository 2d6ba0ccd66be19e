// Mixtures of experts: which experts a token goes to, and the work that the products of packed_*.cu find in device memory.
//
//     scores: f32 [tokens, experts]
//     num_tokens: u32, how many of the tokens are real (none: all): those after them are padding, and get no work
//     chosen: u32 [tokens, top], the experts with the highest scores (of equal ones the first), in the order of their numbers
//     weights: f32 [tokens, top]
//         AMONG_CHOSEN, AMONG_ALL: softmax of the chosen's, or of all experts' scores; SIGMOID: 1 / (1 + e^-score)
//     slots: u32 [tokens * top], the slots (token * top + place) by expert: those of an expert are neighbours
//         ("positions"), in the order of the tokens
//     plan: two lists, u32 [4 + 4 * few_items] and [4 + 4 * many_items]: how many items there are, then expert, first
//         position, number of positions and nothing of each. The first list has the experts of at most `few` positions,
//         cut into items of 8, the second all others, cut into items of `many_rows`.
//     counts: u32 [blocks, experts], how many slots of each expert a block's tokens have
//
// A warp routes a token. Sorting is by counting, so that the order is the same every time: each warp counts the slots of
// its own neighbouring tokens (whose experts all differ, so lanes never meet), sums over the experts, blocks and warps
// before give each warp its first position of each expert, and it goes through its tokens again. Few tokens are one
// block's, `route_plan`. More take two launches: `route_count` routes, and counts by block; in `route_place` every block
// adds up the counts of all, and places its own tokens' slots.
//
// At most 256 experts and 32 places a token. Bytes: 4 * tokens * (experts + 5 * top). A step waits for it, so what counts
// is latency: a warp's tokens, one after the other, each twice (routed; placed), the blocks whose counts are added up, and
// launches. 16 warps have 4 tokens each of the 64 that one block takes at most; of 4,096 they would have 256. So beyond
// 64 tokens there are up to 64 blocks, in which a warp of 4,096 tokens again has 4, and a thread adds up 64 counts, 8
// loads under way at once. Not measured yet.
#include "device.cuh"

constexpr uint32_t MOST_EXPERTS = 256;
constexpr uint32_t MOST_WARPS = 16;
constexpr int HELD = MOST_EXPERTS / WARP_SIZE;
constexpr uint32_t AMONG_CHOSEN = 0, AMONG_ALL = 1;
// Positions of an item of packed/skinny.cuh.
constexpr uint32_t FEW_ROWS = 8;

// In the order of the floats; what is not a number lies beyond the infinity of its sign.
__device__ __forceinline__ uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float unordered(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// An expert of a lane's, or none.
struct Candidate {
    uint32_t key = 0;
    uint32_t expert = UINT_MAX;
};

// Routes a token, by a warp. The first `top` lanes get an expert each.
__device__ __forceinline__ uint32_t route(uint32_t* chosen, float* weights, const float* scores, uint32_t experts,
                                          uint32_t top, uint32_t weighting) {
    const uint32_t lane = lane_id();
    // Of experts lane + 32 i.
    float held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const uint32_t expert = lane + WARP_SIZE * i;
        held[i] = expert < experts ? __ldg(scores + expert) : 0.0f;
    }
    uint32_t left = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        left |= (lane + WARP_SIZE * i < experts ? 1u : 0u) << i;
    }
    Candidate mine;
    float largest = 0.0f;
    for (uint32_t place = 0; place < top; place++) {
        Candidate best;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            const uint32_t key = ordered(held[i]);
            if ((left >> i & 1) != 0 && (best.expert == UINT_MAX || key > best.key)) {
                best.key = key;
                best.expert = lane + WARP_SIZE * i;
            }
        }
        const uint32_t key = __reduce_max_sync(FULL_WARP, best.key);
        const uint32_t expert = __reduce_min_sync(FULL_WARP, best.key == key ? best.expert : UINT_MAX);
        if (expert % WARP_SIZE == lane) {
            left &= ~(1u << (expert / WARP_SIZE));
        }
        if (place == lane) {
            mine.key = key;
            mine.expert = expert;
        }
        largest = place == 0 ? unordered(key) : largest;
    }
    uint32_t before = 0;
    for (uint32_t place = 0; place < top; place++) {
        before += warp_broadcast(mine.expert, place) < mine.expert ? 1 : 0;
    }
    const bool is_chosen = lane < top;
    const float score = unordered(mine.key);
    float share = is_chosen ? expf(score - largest) : 0.0f;
    float total = share;
    if (weighting == AMONG_ALL) {
        total = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; i++) {
            total += lane + WARP_SIZE * i < experts ? expf(held[i] - largest) : 0.0f;
        }
    }
    total = warp_sum(total);
    if (is_chosen) {
        chosen[before] = mine.expert;
        weights[before] = weighting <= AMONG_ALL ? share / total : 1.0f / (1.0f + expf(-score));
    }
    return mine.expert;
}

// What is routed, and how many of it.
struct Tokens {
    uint32_t* chosen;
    const float* scores;
    // Those that are real.
    uint32_t count;
    uint32_t experts;
    uint32_t top;

    __device__ __forceinline__ Tokens(uint32_t* chosen, const float* scores, const uint32_t* num_tokens,
                                      uint32_t tokens, uint32_t experts, uint32_t top)
        : chosen(chosen), scores(scores), count(num_tokens == nullptr ? tokens : min(__ldg(num_tokens), tokens)),
          experts(experts), top(top) {}
};

// A warp's neighbouring tokens: as many as each warp of the launch has, fewer at the end.
struct Share {
    uint32_t begin;
    uint32_t end;

    __device__ __forceinline__ Share(const Tokens& of, uint32_t a_warp) {
        const uint32_t warp = blockIdx.x * (blockDim.x / WARP_SIZE) + warp_id();
        begin = min(warp * a_warp, of.count);
        end = min(begin + a_warp, of.count);
    }
};

struct Sorting {
    // By warp and expert: slots; then the next position.
    uint32_t of_warp[MOST_WARPS][MOST_EXPERTS];
    // By expert: slots of all tokens, of those in blocks before this one; the first position, and the first item.
    uint32_t total[MOST_EXPERTS], before[MOST_EXPERTS], first[MOST_EXPERTS], first_item[MOST_EXPERTS];
};

// How positions are cut into items.
struct Cut {
    uint32_t* plan;
    uint32_t few;
    uint32_t many_rows;
    // Room for so many.
    uint32_t few_items;
    uint32_t many_items;

    __device__ __forceinline__ bool is_few(uint32_t count) const { return count <= few; }
    __device__ __forceinline__ uint32_t rows(uint32_t count) const { return is_few(count) ? FEW_ROWS : many_rows; }
    __device__ __forceinline__ uint32_t items(uint32_t count) const { return (count + rows(count) - 1) / rows(count); }
    __device__ __forceinline__ uint32_t* list(bool of_few) const { return of_few ? plan : plan + 4 + 4 * few_items; }
};

__device__ __forceinline__ void zero_counts(Sorting& sorting, uint32_t experts) {
    for (uint32_t expert = lane_id(); expert < experts; expert += WARP_SIZE) {
        sorting.of_warp[warp_id()][expert] = 0;
    }
    __syncwarp();
}

// Adds 1 to each lane's expert; the lanes' differ.
__device__ __forceinline__ void count(Sorting& sorting, uint32_t expert) {
    if (expert != UINT_MAX) {
        sorting.of_warp[warp_id()][expert]++;
    }
    __syncwarp();
}

// Routes a warp's tokens, and counts them.
__device__ __forceinline__ void route_share(Sorting& sorting, const Tokens& tokens, float* weights, Share share,
                                            uint32_t weighting) {
    zero_counts(sorting, tokens.experts);
    for (uint64_t token = share.begin; token < share.end; token++) {
        const uint32_t expert = route(tokens.chosen + token * tokens.top, weights + token * tokens.top,
                                      tokens.scores + token * tokens.experts, tokens.experts, tokens.top, weighting);
        count(sorting, expert);
    }
}

// The place that a lane looks at, if there are so many: an expert of a token's.
__device__ __forceinline__ uint32_t chosen_of_lane(const Tokens& tokens, uint64_t token) {
    return lane_id() < tokens.top ? tokens.chosen[token * tokens.top + lane_id()] : UINT_MAX;
}

// Of the block's tokens.
__device__ __forceinline__ uint32_t slots_of_block(const Sorting& sorting, uint32_t expert) {
    uint32_t slots = 0;
    for (uint32_t warp = 0; warp < blockDim.x / WARP_SIZE; warp++) {
        slots += sorting.of_warp[warp][expert];
    }
    return slots;
}

// A warp turns totals into first positions and first items; the first block's writes how many items there are.
__device__ __forceinline__ void begin_experts(Sorting& sorting, uint32_t experts, const Cut& cut) {
    uint32_t position = 0, few = 0, many = 0;
    for (uint32_t start = 0; start < experts; start += WARP_SIZE) {
        const uint32_t expert = start + lane_id(), total = expert < experts ? sorting.total[expert] : 0;
        const bool is_few = cut.is_few(total);
        const uint32_t items = cut.items(total);
        const uint32_t positions_to = warp_prefix_sum(total);
        const uint32_t few_to = warp_prefix_sum(is_few ? items : 0u), many_to = warp_prefix_sum(is_few ? 0u : items);
        if (expert < experts) {
            sorting.first[expert] = position + positions_to - total;
            sorting.first_item[expert] = (is_few ? few + few_to : many + many_to) - items;
        }
        position += warp_broadcast(positions_to, WARP_SIZE - 1);
        few += warp_broadcast(few_to, WARP_SIZE - 1);
        many += warp_broadcast(many_to, WARP_SIZE - 1);
    }
    DEVICE_ASSERT(few <= cut.few_items && many <= cut.many_items, "the plan has too little room for the work");
    if (blockIdx.x == 0 && lane_id() == 0) {
        *cut.list(true) = few;
        *cut.list(false) = many;
    }
}

// Writes the items of all experts, a warp for each.
__device__ __forceinline__ void write_items(const Sorting& sorting, uint32_t experts, const Cut& cut) {
    for (uint32_t expert = warp_id(); expert < experts; expert += blockDim.x / WARP_SIZE) {
        const uint32_t total = sorting.total[expert], rows = cut.rows(total);
        uint4* items = reinterpret_cast<uint4*>(cut.list(cut.is_few(total))) + 1 + sorting.first_item[expert];
        for (uint32_t item = lane_id(); item < cut.items(total); item += WARP_SIZE) {
            const uint32_t done = item * rows;
            items[item] = make_uint4(expert, sorting.first[expert] + done, min(rows, total - done), 0);
        }
    }
}

// Places the block's slots, whose warps have counted them, once totals and what is before are known. All threads of the
// block must call this.
__device__ __forceinline__ void place(uint32_t* slots, Sorting& sorting, const Tokens& tokens, Share share,
                                      const Cut& cut) {
    __syncthreads();
    if (warp_id() == 0) {
        begin_experts(sorting, tokens.experts, cut);
    }
    __syncthreads();
    if (blockIdx.x == 0) {
        write_items(sorting, tokens.experts, cut);
    }
    for (uint32_t expert = threadIdx.x; expert < tokens.experts; expert += blockDim.x) {
        uint32_t next = sorting.first[expert] + sorting.before[expert];
        for (uint32_t warp = 0; warp < blockDim.x / WARP_SIZE; warp++) {
            const uint32_t slots_of_warp = sorting.of_warp[warp][expert];
            sorting.of_warp[warp][expert] = next;
            next += slots_of_warp;
        }
    }
    __syncthreads();
    for (uint64_t token = share.begin; token < share.end; token++) {
        const uint32_t expert = chosen_of_lane(tokens, token);
        if (expert != UINT_MAX) {
            slots[sorting.of_warp[warp_id()][expert]] = static_cast<uint32_t>(token) * tokens.top + lane_id();
        }
        count(sorting, expert);
    }
}

extern "C" __global__ void __launch_bounds__(512) route_plan(uint32_t* chosen, float* weights, uint32_t* slots, uint32_t* plan, const float* scores, const uint32_t* num_tokens, uint32_t tokens, uint32_t experts, uint32_t top, uint32_t weighting, uint32_t a_warp, uint32_t few, uint32_t many_rows, uint32_t few_items, uint32_t many_items) {
    __shared__ Sorting sorting;
    const Tokens of(chosen, scores, num_tokens, tokens, experts, top);
    const Share share(of, a_warp);
    route_share(sorting, of, weights, share, weighting);
    __syncthreads();
    for (uint32_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        sorting.total[expert] = slots_of_block(sorting, expert);
        sorting.before[expert] = 0;
    }
    place(slots, sorting, of, share, {plan, few, many_rows, few_items, many_items});
}

extern "C" __global__ void __launch_bounds__(512) route_count(uint32_t* chosen, float* weights, uint32_t* counts, const float* scores, const uint32_t* num_tokens, uint32_t tokens, uint32_t experts, uint32_t top, uint32_t weighting, uint32_t a_warp) {
    __shared__ Sorting sorting;
    const Tokens of(chosen, scores, num_tokens, tokens, experts, top);
    route_share(sorting, of, weights, Share(of, a_warp), weighting);
    __syncthreads();
    for (uint32_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        counts[blockIdx.x * experts + expert] = slots_of_block(sorting, expert);
    }
}

extern "C" __global__ void __launch_bounds__(512) route_place(uint32_t* slots, uint32_t* plan, uint32_t* chosen, const uint32_t* counts, const uint32_t* num_tokens, uint32_t tokens, uint32_t experts, uint32_t top, uint32_t a_warp, uint32_t few, uint32_t many_rows, uint32_t few_items, uint32_t many_items) {
    __shared__ Sorting sorting;
    const Tokens of(chosen, nullptr, num_tokens, tokens, experts, top);
    const Share share(of, a_warp);
    zero_counts(sorting, experts);
    for (uint64_t token = share.begin; token < share.end; token++) {
        count(sorting, chosen_of_lane(of, token));
    }
    for (uint32_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        uint32_t before = 0, total = 0;
#pragma unroll 8
        for (uint32_t block = 0; block < gridDim.x; block++) {
            const uint32_t slots_of_other = __ldg(counts + block * experts + expert);
            before += block < blockIdx.x ? slots_of_other : 0;
            total += slots_of_other;
        }
        sorting.before[expert] = before;
        sorting.total[expert] = total;
    }
    place(slots, sorting, of, share, {plan, few, many_rows, few_items, many_items});
}
