// Mixtures of experts: which experts a token goes to, and the work that the products of packed_*.cu find in device memory.
//
//     scores: f32 [tokens, experts]
//     chosen: u32 [tokens, top], the experts with the highest scores (of equal ones the first), in the order of their numbers
//     weights: f32 [tokens, top]
//         AMONG_CHOSEN, AMONG_ALL: softmax of the chosen's, or of all experts' scores; SIGMOID: 1 / (1 + e^-score)
//     slots: u32 [tokens * top], the slots (token * top + place) by expert: those of an expert are neighbours ("positions")
//     plan: u32 [4 + 4 * capacity]: how many items there are, then expert, first position, number of positions (at most
//         item_rows) and nothing of each: every expert's positions cut into items
//
// A warp routes a token. The block that is done last sorts all slots: it counts them by expert, and gives them places as
// they come. So the order of an expert's positions may differ from run to run; what is computed of each does not.
// `ticket` is 0 before and after. At most 256 experts and 32 places a token.
//
// Bytes: 4 * tokens * (experts + 4 * top). A step waits for it, so what counts is its latency: not measured yet.
#include "device.cuh"

constexpr uint32_t MOST_EXPERTS = 256;
constexpr int HELD = MOST_EXPERTS / WARP_SIZE;
constexpr uint32_t AMONG_CHOSEN = 0, AMONG_ALL = 1;

// In the order of the floats, and what is not a number beyond infinity.
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

// Routes a token, by a warp.
__device__ __forceinline__ void route(uint32_t* chosen, float* weights, const float* scores, uint32_t experts,
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
}

struct Counts {
    // Slots of each expert; then its next position.
    uint32_t of[MOST_EXPERTS];
};

// A warp turns counts into positions, and writes the plan.
__device__ __forceinline__ void write_plan(uint32_t* plan, Counts& counts, uint32_t experts, uint32_t item_rows,
                                           uint32_t capacity) {
    uint32_t position = 0, item = 0;
    for (uint32_t start = 0; start < experts; start += WARP_SIZE) {
        const uint32_t expert = start + lane_id();
        const uint32_t count = expert < experts ? counts.of[expert] : 0;
        const uint32_t items = (count + item_rows - 1) / item_rows;
        const uint32_t positions_to = warp_prefix_sum(count), items_to = warp_prefix_sum(items);
        const uint32_t first = position + positions_to - count, first_item = item + items_to - items;
        DEVICE_ASSERT(first_item + items <= capacity, "the plan has too little room for the work");
        for (uint32_t i = 0; i < items; i++) {
            const uint32_t done = i * item_rows;
            reinterpret_cast<uint4*>(plan)[1 + first_item + i] =
                make_uint4(expert, first + done, min(item_rows, count - done), 0);
        }
        if (expert < experts) {
            counts.of[expert] = first;
        }
        position += warp_broadcast(positions_to, WARP_SIZE - 1);
        item += warp_broadcast(items_to, WARP_SIZE - 1);
    }
    if (lane_id() == 0) {
        plan[0] = item;
    }
}

extern "C" __global__ void __launch_bounds__(512) route_plan(uint32_t* chosen, float* weights, uint32_t* slots, uint32_t* plan, uint32_t* ticket, const float* scores, uint32_t tokens, uint32_t experts, uint32_t top, uint32_t weighting, uint32_t item_rows, uint32_t capacity) {
    __shared__ Counts counts;
    const uint32_t token = blockIdx.x * (blockDim.x / WARP_SIZE) + warp_id();
    if (token < tokens) {
        const uint64_t row = token;
        route(chosen + row * top, weights + row * top, scores + row * experts, experts, top, weighting);
    }
    if (!is_last_block(ticket, gridDim.x)) {
        return;
    }
    for (uint32_t expert = threadIdx.x; expert < experts; expert += blockDim.x) {
        counts.of[expert] = 0;
    }
    __syncthreads();
    const uint32_t all = tokens * top;
    for (uint32_t slot = threadIdx.x; slot < all; slot += blockDim.x) {
        atomicAdd(&counts.of[__ldcg(chosen + slot)], 1u);
    }
    __syncthreads();
    if (warp_id() == 0) {
        write_plan(plan, counts, experts, item_rows, capacity);
    }
    __syncthreads();
    for (uint32_t slot = threadIdx.x; slot < all; slot += blockDim.x) {
        slots[atomicAdd(&counts.of[__ldcg(chosen + slot)], 1u)] = slot;
    }
}
