// Products with few positions an expert, for decode: bandwidth is all that counts.
//
// A block takes a tile of 16 rows, or one of gates and the one of their ups, and up to 8 positions of one item. Its 8
// warps (of two tiles, 4 each) take chunks of 64 columns in turn, and their sums are added at the end. Weights come
// straight from memory to registers, AHEAD chunks a lane under way before the first use, and are used once. Of codes and
// scales these are, a lane and, of 24 warps (bf16: 16), a multiprocessor:
//
//     Q2_K, Q3_K                    37 bytes     28 KiB
//     Q5_0, Q5_1, Q5_K              44 to 48     33 to 36
//     Q6_K, INT4, Q4_0, Q4_1, Q4_K  50 to 60     38 to 45
//     MXFP4, INT8, FP8, Q8_0        64 to 68     48 to 51
//     bf16                          128          64
//
// Whether the least of them keep a GPU's memory busy is not measured yet. The products of a group of 32 or 16 columns are
// added up with exact codes, and then scaled in f32; what a group adds to its codes is multiplied with the sum of its x. A
// position's bits do not depend on the others.
#pragma once
#include "packed/operands.cuh"

namespace packed {

template <typename Format> struct Skinny {
    using Scales = typename Format::Scales;
    static constexpr int WARPS = 8;
    static constexpr int POSITIONS = 8;
    static constexpr int AHEAD = Format::AHEAD;

    struct Loaded {
        Vec16 codes[Format::VECTORS];
        uint32_t scales[Scales::WORDS];
        Vec16 x[2];
    };

    float sums[4];

    __device__ __forceinline__ void multiply(const Loaded& loaded, uint32_t scaling) {
        constexpr int WORDS = Format::WORDS_A_ROW;
        uint32_t words[4 * Format::VECTORS];
#pragma unroll
        for (int i = 0; i < 4 * Format::VECTORS; i++) {
            words[i] = loaded.codes[i / 4].words[i % 4];
        }
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            uint32_t low[4], high[4];
            Format::decode(low, words + 2 * piece * WORDS, Scales::of_codes(loaded.scales, {piece, 0, 0}, scaling));
            Format::decode(high, words + (2 * piece + 1) * WORDS, Scales::of_codes(loaded.scales, {piece, 1, 0}, scaling));
#pragma unroll
            for (uint32_t group = 0; group < Scales::GROUPS; group++) {
                add_group(low, high, loaded, piece, group, scaling);
            }
        }
    }

    // Adds the products of a piece, or of one of its groups, scaled.
    __device__ __forceinline__ void add_group(const uint32_t (&low)[4], const uint32_t (&high)[4], const Loaded& loaded,
                                              int piece, uint32_t group, uint32_t scaling) {
        const uint32_t* x = loaded.x[piece].words;
        // Two groups are the columns of half of the lanes each.
        const uint32_t kept = Scales::GROUPS == 1 || lane_id() % 4 / 2 == group ? 0xffffffffu : 0;
        float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        mma_m16n8k16_bf16(part, {low[0] & kept, high[0] & kept, low[1] & kept, high[1] & kept}, {x[0], x[1]}, part);
        mma_m16n8k16_bf16(part, {low[2] & kept, high[2] & kept, low[3] & kept, high[3] & kept}, {x[2], x[3]}, part);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[i] = fmaf(part[i], Scales::factor(loaded.scales, {piece, i / 2, group}, scaling), sums[i]);
        }
        if constexpr (Scales::ROUNDING == Rounding::OF_FLOATS) {
            if (!Scales::has_minima(scaling)) {
                return;
            }
            // Each position's sum of x, in every row.
            const uint32_t ones = 0x3f803f80u & kept;
            float total[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            mma_m16n8k16_bf16(total, {ones, ones, ones, ones}, {x[0], x[1]}, total);
            mma_m16n8k16_bf16(total, {ones, ones, ones, ones}, {x[2], x[3]}, total);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[i] = fmaf(total[i], Scales::minimum(loaded.scales, {piece, i / 2, group}, scaling), sums[i]);
            }
        }
    }
};

template <typename Format> __device__ __forceinline__ void skinny(const Operands& to) {
    using S = Skinny<Format>;
    using Codes = typename Format::Codes;
    __shared__ float partial[S::WARPS][TILE_ROWS][S::POSITIONS];
    const Item item = load_item(to, to.item(), S::POSITIONS);
    if (item.count == 0) {
        return;
    }
    const uint32_t lane = lane_id(), g = lane / 4, t = lane % 4, chunks = to.matrix.chunks();
    // Half of the warps take up's tile, if there is one.
    const uint32_t warps = to.is_gated() ? S::WARPS / 2 : S::WARPS;
    const uint32_t tile = to.block_of_rows() + warp_id() / warps * (to.matrix.tiles() / 2);
    const unsigned char* codes = to.codes + item.expert * Codes::matrix_bytes(to.matrix) +
                                 tile * Codes::tile_bytes(to.matrix);
    const uint64_t scale_tile = static_cast<uint64_t>(item.expert) * to.matrix.tiles() + tile;
    const unsigned char* scales = to.scales + scale_tile * Format::Scales::tile_bytes(chunks, to.scaling);
    const bf16* x = nullptr;
    if (g < item.count) {
        x = to.x + static_cast<uint64_t>(to.x_row(item.first + g)) * to.matrix.columns;
    }
    S sums = {{0.0f, 0.0f, 0.0f, 0.0f}};
    for (uint32_t start = warp_id() % warps; start < chunks; start += warps * S::AHEAD) {
        typename S::Loaded loaded[S::AHEAD];
        const auto for_each_chunk = [&](const auto& f) {
#pragma unroll
            for (int i = 0; i < S::AHEAD; i++) {
                const uint32_t chunk = start + i * warps;
                if (chunk < chunks) {
                    f(loaded[i], chunk);
                }
            }
        };
        for_each_chunk([&](typename S::Loaded& to_load, uint32_t chunk) {
#pragma unroll
            for (int v = 0; v < Format::VECTORS; v++) {
                const unsigned char* from = codes + static_cast<uint64_t>(chunk) * Codes::CHUNK_STEP;
                const bool exists =
                    Codes::has_row(to.matrix, tile, v, lane) && Codes::has_column(to.matrix, chunk, v, lane);
                to_load.codes[v] =
                    exists ? load16_once(from + Codes::offset(to.matrix, v, lane)) : Vec16{{0, 0, 0, 0}};
            }
            Format::Scales::load(to_load.scales, scales, chunk, to.scaling);
        });
        for_each_chunk([&](typename S::Loaded& to_load, uint32_t chunk) {
#pragma unroll
            for (int piece = 0; piece < 2; piece++) {
                const uint32_t column = chunk * CHUNK + piece * PIECE + 8 * t;
                const bool exists = x != nullptr && column < to.matrix.columns;
                to_load.x[piece] = exists ? load16_readonly(x + column) : Vec16{{0, 0, 0, 0}};
            }
        });
        __syncwarp();
        for_each_chunk([&](const typename S::Loaded& ready, uint32_t) { sums.multiply(ready, to.scaling); });
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        partial[warp_id()][g + 8 * (i / 2)][2 * t + i % 2] = sums.sums[i];
    }
    __syncthreads();
    const uint32_t row = threadIdx.x % TILE_ROWS, of_item = threadIdx.x / TILE_ROWS;
    const uint32_t column = to.block_of_rows() * TILE_ROWS + row;
    if (of_item >= item.count || column >= to.width()) {
        return;
    }
    const uint32_t position = item.first + of_item;
    const float weight = to.input_weight(position);
    // Of the warps that have the tile, in one order.
    const auto sum_of = [&](uint32_t first_warp, uint32_t row_of_matrix) {
        float sum = 0.0f;
        for (uint32_t warp = first_warp; warp < first_warp + warps; warp++) {
            sum += partial[warp][row][of_item];
        }
        return sum * weight + to.bias_of(item.expert, row_of_matrix);
    };
    float value = sum_of(0, column);
    if (to.is_gated()) {
        value = to.gated(value, sum_of(warps, to.width() + column));
    }
    to.store(static_cast<uint64_t>(to.y_row(position)) * to.stride + column, value);
}

}  // namespace packed
