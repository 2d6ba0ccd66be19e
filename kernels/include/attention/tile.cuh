// Tiles of keys and values in shared memory, and how a warp gets tensor core operands out of them.
//
// A tile is rows of D elements, one a position. The 16-byte pieces of a row are permuted so that the eight rows that
// ldmatrix reads at once lie in different banks.
//
// With a bf16 cache the operands are what ldmatrix gives. With fp8 it gives four elements where two bf16 are wanted;
// they are widened in registers, and of each 16 columns the even ones come first. For keys that is made good by queries
// in the same order (even_columns_first), for values by where the result's columns are stored (store_columns).
#pragma once
#include "device.cuh"

namespace attention {

template <typename Kv, int D> struct Tile {
    static constexpr int ROW_BYTES = D * sizeof(Kv);
    static constexpr int PIECES = ROW_BYTES / 16;
    // Columns of 16 positions that one ldmatrix_x4 loads.
    static constexpr int SPAN = 16 / sizeof(Kv) * 2;
    static constexpr int SPANS = D / SPAN;
    static_assert(D % SPAN == 0);

    static constexpr uint32_t ROWS_A_LINE = ROW_BYTES < 128 ? 128 / ROW_BYTES : 1;
    static constexpr uint32_t MASK = (PIECES < 8 ? PIECES : 8) - 1;

    // Byte offset of a piece.
    __device__ __forceinline__ static uint32_t offset(uint32_t row, uint32_t piece) {
        return row * ROW_BYTES + ((piece ^ ((row / ROWS_A_LINE) & MASK)) << 4);
    }

    // The offset of the piece `rows` and `pieces` on from that at `at`, where none of the bits of `rows` and `pieces`
    // is set in its row and piece. With constants this is one or two instructions, and needs no register kept.
    __device__ __forceinline__ static uint32_t move(uint32_t at, uint32_t rows, uint32_t pieces) {
        return (at ^ ((pieces ^ ((rows / ROWS_A_LINE) & MASK)) << 4)) + rows * ROW_BYTES;
    }
};

// Elements of 16 positions, from `row` of the tile on, at a span of columns, as ldmatrix gives them.
template <typename Kv, int D>
__device__ __forceinline__ void load_keys(uint32_t (&r)[4], const unsigned char* tile, uint32_t row, uint32_t span) {
    using T = Tile<Kv, D>;
    const uint32_t lane = lane_id();
    ldmatrix_x4(r, tile + T::move(T::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2), row, 2 * span));
}

template <typename Kv, int D>
__device__ __forceinline__ void load_values(uint32_t (&r)[4], const unsigned char* tile, uint32_t row, uint32_t span) {
    using T = Tile<Kv, D>;
    ldmatrix_x4_trans(r, tile + T::move(T::offset(lane_id() % 16, lane_id() / 16), row, 2 * span));
}

// Operand b of q * k^T for the span's 16 columns number `step` and half `n` of the 16 positions.
template <typename Kv>
__device__ __forceinline__ void key_operand(uint32_t (&b)[2], const uint32_t (&r)[4], int step, int n) {
    if constexpr (sizeof(Kv) == 2) {
        b[0] = r[2 * n];
        b[1] = r[2 * n + 1];
    } else {
        b[0] = widen_even_bytes(r[2 * n + step]);
        b[1] = widen_odd_bytes(r[2 * n + step]);
    }
}

// Operand b of p * v for half `n` of the span's 16 columns number `step`: columns 8 n .. 8 n + 8 of a bf16 cache, the
// even (0) or odd (1) columns of an fp8 one.
template <typename Kv>
__device__ __forceinline__ void value_operand(uint32_t (&b)[2], const uint32_t (&r)[4], int step, int n) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if constexpr (sizeof(Kv) == 2) {
            b[i] = r[2 * n + i];
        } else {
            b[i] = n == 0 ? widen_even_bytes(r[2 * step + i]) : widen_odd_bytes(r[2 * step + i]);
        }
    }
}

// Of 16 bf16 in a row, the even columns, then the odd ones.
__device__ __forceinline__ void even_columns_first(Vec16& first, Vec16& second) {
    Vec16 even, odd;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        even.words[i] = __byte_perm(first.words[2 * i], first.words[2 * i + 1], 0x5410);
        odd.words[i] = __byte_perm(first.words[2 * i], first.words[2 * i + 1], 0x7632);
        even.words[2 + i] = __byte_perm(second.words[2 * i], second.words[2 * i + 1], 0x5410);
        odd.words[2 + i] = __byte_perm(second.words[2 * i], second.words[2 * i + 1], 0x7632);
    }
    first = even;
    second = odd;
}

// Stores a lane's four elements of a row at 16 columns: `a` and `b` are of value_operand's halves 0 and 1.
template <typename Kv>
__device__ __forceinline__ void store_columns(float* row_swizzled, uint32_t column, uint32_t swizzle, const float2& a,
                                              const float2& b) {
    const uint32_t t = lane_id() % 4;
    if constexpr (sizeof(Kv) == 2) {
        *reinterpret_cast<float2*>(row_swizzled + ((column + 2 * t) ^ swizzle)) = a;
        *reinterpret_cast<float2*>(row_swizzled + ((column + 8 + 2 * t) ^ swizzle)) = b;
    } else {
        *reinterpret_cast<float4*>(row_swizzled + ((column + 4 * t) ^ swizzle)) = make_float4(a.x, b.x, a.y, b.y);
    }
}

}  // namespace attention
