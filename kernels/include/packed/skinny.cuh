// Products with few positions an expert, for decode: bandwidth is all that counts.
//
// A block takes a tile of 16 rows and up to 8 positions of one item. Its 8 warps take chunks of 64 columns in turn, and
// their sums are added at the end. Weights come straight from memory to registers, 48 to 128 bytes a lane under way before
// the first use (at 16 to 24 warps 36 to 64 KiB a multiprocessor), and are used once. The products of a piece of 32 columns
// are added up with exact codes, and then scaled in f32. A position's bits do not depend on the others.
#pragma once
#include "packed/operands.cuh"

namespace packed {

template <typename Format> struct Skinny {
    static constexpr int WARPS = 8;
    static constexpr int POSITIONS = 8;
    static constexpr int AHEAD = Format::AHEAD;

    struct Loaded {
        Vec16 codes[Format::VECTORS];
        uint32_t scales[Format::Scales::WORDS];
        Vec16 x[2];
    };

    float sums[4];

    __device__ __forceinline__ void multiply(const Loaded& loaded) {
        constexpr int WORDS = Format::WORDS_A_ROW;
        uint32_t words[4 * Format::VECTORS];
#pragma unroll
        for (int i = 0; i < 4 * Format::VECTORS; i++) {
            words[i] = loaded.codes[i / 4].words[i % 4];
        }
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            uint32_t low[4], high[4];
            Format::decode(low, words + 2 * piece * WORDS, Format::Scales::zero(loaded.scales, piece, 0));
            Format::decode(high, words + (2 * piece + 1) * WORDS, Format::Scales::zero(loaded.scales, piece, 1));
            const uint32_t* x = loaded.x[piece].words;
            float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            mma_m16n8k16_bf16(part, {low[0], high[0], low[1], high[1]}, {x[0], x[1]}, part);
            mma_m16n8k16_bf16(part, {low[2], high[2], low[3], high[3]}, {x[2], x[3]}, part);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums[i] = fmaf(part[i], Format::Scales::factor(loaded.scales, piece, i / 2), sums[i]);
            }
        }
    }
};

template <typename Format> __device__ __forceinline__ void skinny(const Operands& to) {
    using S = Skinny<Format>;
    __shared__ float partial[S::WARPS][TILE_ROWS][S::POSITIONS];
    const Item item = load_item(to, to.item(), S::POSITIONS);
    if (item.count == 0) {
        return;
    }
    const uint32_t g = lane_id() / 4, t = lane_id() % 4, chunks = to.chunks();
    const uint64_t tile = static_cast<uint64_t>(item.expert) * to.tiles() + to.block_of_rows();
    const unsigned char* codes = to.codes + tile * chunks * CHUNK_BYTES<Format> + lane_id() * 16;
    const unsigned char* scales = to.scales + tile * Format::Scales::tile_bytes(chunks, to.group_shift);
    const bf16* x = nullptr;
    if (g < item.count) {
        x = to.x + static_cast<uint64_t>(to.x_row(item.first + g)) * to.columns;
    }
    S sums = {{0.0f, 0.0f, 0.0f, 0.0f}};
    for (uint32_t start = warp_id(); start < chunks; start += S::WARPS * S::AHEAD) {
        typename S::Loaded loaded[S::AHEAD];
        const auto for_each_chunk = [&](const auto& f) {
#pragma unroll
            for (int i = 0; i < S::AHEAD; i++) {
                const uint32_t chunk = start + i * S::WARPS;
                if (chunk < chunks) {
                    f(loaded[i], chunk);
                }
            }
        };
        for_each_chunk([&](typename S::Loaded& to_load, uint32_t chunk) {
#pragma unroll
            for (int v = 0; v < Format::VECTORS; v++) {
                to_load.codes[v] = load16_once(codes + static_cast<uint64_t>(chunk) * CHUNK_BYTES<Format> + v * 512);
            }
            Format::Scales::load(to_load.scales, scales, chunk, to.group_shift);
        });
        for_each_chunk([&](typename S::Loaded& to_load, uint32_t chunk) {
#pragma unroll
            for (int piece = 0; piece < 2; piece++) {
                const uint32_t column = chunk * CHUNK + piece * PIECE + 8 * t;
                const bool exists = x != nullptr && column < to.columns;
                to_load.x[piece] = exists ? load16_readonly(x + column) : Vec16{{0, 0, 0, 0}};
            }
        });
        __syncwarp();
        for_each_chunk([&](const typename S::Loaded& ready, uint32_t) { sums.multiply(ready); });
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        partial[warp_id()][g + 8 * (i / 2)][2 * t + i % 2] = sums.sums[i];
    }
    __syncthreads();
    const auto sum_of = [&](uint32_t row, uint32_t position, float weight) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < S::WARPS; warp++) {
            sum += partial[warp][row][position];
        }
        const uint32_t at = to.block_of_rows() * TILE_ROWS + row;
        return at < to.rows ? sum * weight + to.bias_of(item.expert, at) : 0.0f;
    };
    const bool gated = to.activation != NONE;
    const uint32_t rows = gated ? TILE_ROWS / 2 : TILE_ROWS;
    const uint32_t row = threadIdx.x % rows, of_item = threadIdx.x / rows, column = to.block_of_rows() * rows + row;
    if (of_item < item.count && column < to.width()) {
        const uint32_t position = item.first + of_item;
        const float weight = to.input_weight(position);
        float value = sum_of(row, of_item, weight);
        if (gated) {
            value = to.gated(value, sum_of(row + 8, of_item, weight));
        }
        to.y[static_cast<uint64_t>(to.y_row(position)) * to.width() + column] = from_float<bf16>(value);
    }
}

}  // namespace packed
