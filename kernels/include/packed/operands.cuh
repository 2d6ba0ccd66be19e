// What every product with packed weights takes: its operands, the work that a block finds in the plan, and what happens
// to a sum before it is stored.
#pragma once
#include "packed/formats.cuh"

namespace packed {

// What a gate and its up become, rows n and rows / 2 + n; NONE: rows are stored as they are.
enum Activation : uint32_t { NONE = 0, SILU_MUL = 1, CLAMPED_SWIGLU = 2 };

// Rows of x and y are numbered by `slots`, a slot being one of `top` places of a token's: position p of the work reads
// row slots[p] / top of x (row p, if top is 0), and writes row slots[p] of y if `scatters`, else row p.
struct Operands {
    bf16* y;
    const bf16* x;
    const unsigned char* codes;
    const unsigned char* scales;
    // [experts, rows], or nothing.
    const float* bias;
    // As route.cu makes it; or nothing: one expert has positions 0 .. positions.
    const uint32_t* plan;
    const uint32_t* slots;
    // What a slot's x is multiplied by, or nothing.
    const float* input_weights;
    uint32_t positions;
    // Of one expert; if gated, rows % 32 == 0.
    Extent matrix;
    // What the format's scales take to be read.
    uint32_t scaling;
    uint32_t top;
    uint32_t scatters;
    uint32_t activation;
    float alpha;
    float limit;
    // y is float, and not bf16.
    uint32_t wide;
    // Elements from a row of y to the next.
    uint32_t stride;

    __device__ __forceinline__ bool is_gated() const { return activation != NONE; }
    // Elements of a row of y.
    __device__ __forceinline__ uint32_t width() const { return is_gated() ? matrix.rows / 2 : matrix.rows; }

    // Which rows of the matrix and which item are this block's. Blocks beside each other share weights where there is one
    // matrix, else positions.
    __device__ __forceinline__ uint32_t block_of_rows() const { return plan == nullptr ? blockIdx.y : blockIdx.x; }
    __device__ __forceinline__ uint32_t item() const { return plan == nullptr ? blockIdx.x : blockIdx.y; }

    __device__ __forceinline__ uint32_t x_row(uint32_t position) const {
        return top == 0 ? position : __ldg(slots + position) / top;
    }

    __device__ __forceinline__ uint32_t y_row(uint32_t position) const {
        return scatters != 0 ? __ldg(slots + position) : position;
    }

    __device__ __forceinline__ float input_weight(uint32_t position) const {
        return input_weights == nullptr ? 1.0f : __ldg(input_weights + __ldg(slots + position));
    }

    __device__ __forceinline__ float bias_of(uint32_t expert, uint32_t row) const {
        return bias == nullptr ? 0.0f : __ldg(bias + static_cast<uint64_t>(expert) * matrix.rows + row);
    }

    // Stores an element of y on its own.
    __device__ __forceinline__ void store(uint64_t at, float value) const {
        if (wide != 0) {
            reinterpret_cast<float*>(y)[at] = value;
        } else {
            y[at] = from_float<bf16>(value);
        }
    }

    // Comparisons, not fminf and fmaxf, which would pass over what is not a number.
    __device__ __forceinline__ float gated(float gate, float up) const {
        if (activation == CLAMPED_SWIGLU) {
            gate = gate > limit ? limit : gate;
            up = up > limit ? limit : up;
            up = up < -limit ? -limit : up;
            return (up + 1.0f) * __fdividef(gate, 1.0f + __expf(-alpha * gate));
        }
        return __fdividef(gate, 1.0f + __expf(-gate)) * up;
    }
};

// Some positions that one expert works on.
struct Item {
    uint32_t expert;
    uint32_t first;
    // 0: there is no such item.
    uint32_t count;
};

// Item number `index`, of at most `most` positions.
__device__ __forceinline__ Item load_item(const Operands& to, uint32_t index, uint32_t most) {
    if (to.plan == nullptr) {
        const uint32_t first = index * most;
        return {0, first, first < to.positions ? min(most, to.positions - first) : 0};
    }
    if (index >= __ldg(to.plan)) {
        return {0, 0, 0};
    }
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(to.plan) + 1 + index);
    DEVICE_ASSERT(words.z >= 1 && words.z <= most, "the plan was made for items of another size");
    return {words.x, words.y, words.z};
}

#define PACKED_PARAMETERS                                                                                              \
    bf16 *y, const bf16 *x, const unsigned char *codes, const unsigned char *scales, const float *bias,                \
        const uint32_t *plan, const uint32_t *slots, const float *input_weights, uint32_t positions, uint32_t rows,    \
        uint32_t columns, uint32_t scaling, uint32_t top, uint32_t scatters, uint32_t activation, float alpha,         \
        float limit, uint32_t wide, uint32_t stride

#define PACKED_OPERANDS                                                                                                \
    packed::Operands {                                                                                                 \
        y, x, codes, scales, bias, plan, slots, input_weights, positions, packed::Extent{rows, columns}, scaling,      \
            top, scatters, activation, alpha, limit, wide, stride                                                      \
    }

}  // namespace packed
