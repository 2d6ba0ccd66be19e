// Products with many positions an expert, on the tensor cores.
//
// A block of 8 warps takes up to POSITIONS positions of one item and ROWS rows, a warp 32 rows x 64 positions: 256 x 64
// a block where WARPS_ACROSS is 1, 128 x 128 where it is 2. A warp's rows are two tiles of 16; of a gated pair of
// matrices, one of gates and the one of their ups, so that a lane has both. Chunks of 64 columns come through a ring in shared memory
// by cp.async: codes and scales as they lie, and the positions' rows of x, whose 16-byte pieces are permuted so that
// eight lanes read all banks. A warp decodes and scales a piece's 32 x 32 weights in registers, rounds them to bf16, and
// uses them on all its positions; one 16-byte load of a position is the operand of four products. Eights of positions
// that an item does not have are passed over. The result goes through shared memory, to be stored in 16-byte vectors.
#pragma once
#include "packed/operands.cuh"

namespace packed {

template <typename Format, int WARPS_ACROSS> struct Tiled {
    static constexpr int WARPS = 8, THREADS = WARPS * WARP_SIZE;
    static constexpr int WARPS_DOWN = WARPS / WARPS_ACROSS;
    static constexpr uint32_t ROWS = 32 * WARPS_DOWN, TILES = ROWS / TILE_ROWS;
    static constexpr uint32_t POSITIONS = 64 * WARPS_ACROSS;
    // Eights of positions of a warp.
    static constexpr int EIGHTS = 8;

    static constexpr uint32_t X_BYTES = POSITIONS * CHUNK * sizeof(bf16);
    static constexpr uint32_t CODE_BYTES = TILES * CHUNK_BYTES<Format>;
    static constexpr uint32_t SCALE_BYTES = TILES * Format::Scales::PARTS * 16;
    // Threads, a power of two, that copy a tile's scales; where they are fewer than its 16-byte parts, they take turns.
    static constexpr uint32_t SCALE_PARTS = Format::Scales::PARTS == 0 ? 1 : Format::Scales::PARTS;
    static constexpr bool IS_ONE_EACH = (SCALE_PARTS & (SCALE_PARTS - 1)) == 0 && SCALE_PARTS * TILES <= THREADS;
    static constexpr uint32_t SCALE_THREADS = IS_ONE_EACH ? SCALE_PARTS : THREADS / TILES;
    static constexpr uint32_t STAGE_BYTES = X_BYTES + CODE_BYTES + SCALE_BYTES;
    // What a multiprocessor of every architecture has room for.
    static constexpr int STAGES = STAGE_BYTES <= 24 * 1024 ? 4 : STAGE_BYTES <= 32 * 1024 ? 3 : 2;

    // Where a piece of 8 columns of a position's row lies.
    __device__ __forceinline__ static uint32_t x_offset(uint32_t position, uint32_t piece) {
        return position * CHUNK * sizeof(bf16) + ((piece ^ ((position & 1) << 2)) << 4);
    }
};

// Which tiles a block has: TILES neighbours, or as many gates as ups, in turn.
template <typename T> struct BlockTiles {
    uint32_t first;
    // From a gate to its up; 0 without.
    uint32_t to_up;
    // Of the matrix, gates alone if there are any.
    uint32_t end;

    __device__ __forceinline__ BlockTiles(const Operands& to) {
        const uint32_t tiles = to.matrix.tiles();
        to_up = to.is_gated() ? tiles / 2 : 0;
        first = to.block_of_rows() * (to.is_gated() ? T::TILES / 2 : T::TILES);
        end = to.is_gated() ? tiles / 2 : tiles;
    }

    // The block's tile number `index`, before it is known to exist.
    __device__ __forceinline__ uint32_t tile(uint32_t index) const {
        return to_up == 0 ? first + index : first + index / 2 + index % 2 * to_up;
    }

    __device__ __forceinline__ bool exists(uint32_t index) const {
        return first + (to_up == 0 ? index : index / 2) < end;
    }
};

// What this thread copies of each chunk.
template <typename Format, int WARPS_ACROSS> struct Copies {
    using T = Tiled<Format, WARPS_ACROSS>;
    using Codes = typename Format::Codes;
    static constexpr int X_PARTS = T::X_BYTES / 16 / T::THREADS;
    static constexpr int CODE_PARTS = T::CODE_BYTES / 16 / T::THREADS;
    static constexpr uint32_t PARTS_A_TILE = CHUNK_BYTES<Format> / 16;
    // Tiles from a part of this thread to the next.
    static constexpr uint32_t TILES_A_ROUND = T::THREADS / PARTS_A_TILE;

    BlockTiles<T> tiles;
    // Rows of x; of positions that the item does not have, nothing.
    const bf16* x[X_PARTS];
    // This thread's first part of the first chunk, and how far its next is.
    const unsigned char* codes;
    uint64_t code_step;
    // Of the tile whose parts this thread copies.
    const unsigned char* scales;
    // A bit for each part of the codes, and the last for those of the scales: whether its rows exist.
    uint32_t existing;

    __device__ __forceinline__ Copies(const Operands& to, const Item& item) : tiles(to) {
        const uint32_t tile = tiles.tile(threadIdx.x / PARTS_A_TILE), lane = threadIdx.x % WARP_SIZE;
        const uint64_t tile_bytes = Codes::tile_bytes(to.matrix);
        codes = to.codes + item.expert * Codes::matrix_bytes(to.matrix) + tile * tile_bytes +
                Codes::offset(to.matrix, vector(), lane);
        code_step = tile_bytes * (to.is_gated() ? TILES_A_ROUND / 2 : TILES_A_ROUND);
        existing = 0;
#pragma unroll
        for (int i = 0; i < CODE_PARTS; i++) {
            const uint32_t index = threadIdx.x / PARTS_A_TILE + i * TILES_A_ROUND;
            const bool exists =
                tiles.exists(index) && Codes::has_row(to.matrix, tiles.tile(index), vector(), lane);
            existing |= (exists ? 1u : 0u) << i;
        }
        if constexpr (T::SCALE_BYTES != 0) {
            const uint32_t index = threadIdx.x / T::SCALE_THREADS;
            const uint64_t number = static_cast<uint64_t>(item.expert) * to.matrix.tiles() + tiles.tile(index);
            scales = to.scales + number * Format::Scales::tile_bytes(to.matrix.chunks(), to.scaling);
            existing |= index < T::TILES && tiles.exists(index) ? 1u << 31 : 0u;
        }
#pragma unroll
        for (int i = 0; i < X_PARTS; i++) {
            const uint32_t position = threadIdx.x / 8 + i * (T::THREADS / 8);
            x[i] = nullptr;
            if (position < item.count) {
                x[i] = to.x + static_cast<uint64_t>(to.x_row(item.first + position)) * to.matrix.columns;
            }
        }
    }

    __device__ __forceinline__ static uint32_t vector() { return threadIdx.x % PARTS_A_TILE / WARP_SIZE; }

    // Begins to copy a chunk. What does not exist becomes zeros.
    __device__ __forceinline__ void begin(unsigned char* stage, uint32_t chunk, const Operands& to) const {
        const uint32_t piece = threadIdx.x % 8, column = chunk * CHUNK + 8 * piece;
#pragma unroll
        for (int i = 0; i < X_PARTS; i++) {
            const uint32_t position = threadIdx.x / 8 + i * (T::THREADS / 8);
            const bool exists = x[i] != nullptr && column < to.matrix.columns;
            cp_async_16(stage + T::x_offset(position, piece), exists ? x[i] + column : to.x, exists);
        }
        const unsigned char* from = codes + static_cast<uint64_t>(chunk) * Codes::CHUNK_STEP;
        const bool has_column = Codes::has_column(to.matrix, chunk, vector(), threadIdx.x % WARP_SIZE);
#pragma unroll
        for (int i = 0; i < CODE_PARTS; i++) {
            const bool exists = has_column && (existing >> i & 1) != 0;
            cp_async_16(stage + T::X_BYTES + (threadIdx.x + i * T::THREADS) * 16,
                        exists ? from + i * code_step : to.codes, exists);
        }
        if constexpr (T::SCALE_BYTES != 0) {
            constexpr uint32_t PARTS = Format::Scales::PARTS;
            const uint32_t index = threadIdx.x / T::SCALE_THREADS;
            // Side by side, addresses would take too many registers.
#pragma unroll 1
            for (uint32_t first = 0; first < PARTS; first += T::SCALE_THREADS) {
                const uint32_t i = first + threadIdx.x % T::SCALE_THREADS;
                if (index < T::TILES && i < PARTS) {
                    const unsigned char* part = Format::Scales::part(scales, chunk, i, to.scaling);
                    const bool exists = existing >> 31 != 0 && part != nullptr;
                    cp_async_16(stage + T::X_BYTES + T::CODE_BYTES + (index * PARTS + i) * 16,
                                exists ? part : to.scales, exists);
                }
            }
        }
    }
};

// A lane's operands of 16 rows x 32 columns: [product][operand register].
template <typename Format>
__device__ __forceinline__ void load_weights(uint32_t (&a)[2][4], const unsigned char* chunk,
                                             const uint32_t (&scales)[Format::Scales::WORDS], int piece,
                                             uint32_t scaling) {
    constexpr int WORDS = Format::WORDS_A_ROW;
    uint32_t words[2][WORDS];
    const unsigned char* lane = chunk + lane_id() * 16;
    if constexpr (WORDS == 1) {
        const uint2 both = *reinterpret_cast<const uint2*>(lane + 8 * piece);
        words[0][0] = both.x;
        words[1][0] = both.y;
    } else {
#pragma unroll
        for (int i = 0; i < WORDS / 2; i++) {
            const Vec16 v = load16(lane + (piece * (WORDS / 2) + i) * 512);
#pragma unroll
            for (int word = 0; word < 4; word++) {
                const int at = 4 * i + word;
                words[at / WORDS][at % WORDS] = v.words[word];
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t pairs[4];
        const Place at = {piece, half, Format::Scales::GROUPS == 1 ? 0u : lane_id() % 4u / 2};
        Format::decode(pairs, words[half], Format::Scales::of_codes(scales, at, scaling));
        scale<Format>(pairs, scales, at, scaling);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            a[i / 2][i % 2 * 2 + half] = pairs[i];
        }
    }
}

// Adds a chunk's products to a warp's sums: 2 x 16 rows x EIGHTS x 8 positions, of which `eights` are there.
template <typename Format, int WARPS_ACROSS>
__device__ __forceinline__ void multiply_chunk(float (&sums)[2][Tiled<Format, WARPS_ACROSS>::EIGHTS][4],
                                               const unsigned char* stage, uint32_t down, uint32_t across, int eights,
                                               uint32_t scaling) {
    using T = Tiled<Format, WARPS_ACROSS>;
    const unsigned char* codes = stage + T::X_BYTES + 2 * down * CHUNK_BYTES<Format>;
    const unsigned char* all_scales = stage + T::X_BYTES + T::CODE_BYTES + 2 * down * Format::Scales::PARTS * 16;
    // Where decoding takes many registers, one piece's are enough.
    constexpr int UNROLLED = Format::Scales::ROUNDING == Rounding::OF_FLOATS ? 1 : 2;
#pragma unroll UNROLLED
    for (int piece = 0; piece < 2; piece++) {
        uint32_t a[2][2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            uint32_t scales[Format::Scales::WORDS];
            Format::Scales::load_shared(scales, all_scales + m * Format::Scales::PARTS * 16);
            load_weights<Format>(a[m], codes + m * CHUNK_BYTES<Format>, scales, piece, scaling);
        }
#pragma unroll
        for (int n = 0; n < T::EIGHTS; n++) {
            if (n < eights) {
                const uint32_t position = across * 64 + n * 8 + lane_id() / 4;
                const Vec16 x = load16(stage + T::x_offset(position, 4 * piece + lane_id() % 4));
#pragma unroll
                for (int product = 0; product < 2; product++) {
#pragma unroll
                    for (int m = 0; m < 2; m++) {
                        mma_m16n8k16_bf16(sums[m][n], a[m][product], {x.words[2 * product], x.words[2 * product + 1]},
                                          sums[m][n]);
                    }
                }
            }
        }
    }
}

// Biases, activation, and the way to y: bf16 through shared memory (the block's ring is free), to be stored in 16-byte
// vectors; float at once, eight rows of which are a sector of memory.
template <typename Format, int WARPS_ACROSS>
__device__ __forceinline__ void store_sums(const Operands& to, const Item& item,
                                           const BlockTiles<Tiled<Format, WARPS_ACROSS>>& tiles,
                                           const float (&sums)[2][Tiled<Format, WARPS_ACROSS>::EIGHTS][4],
                                           unsigned char* shared, uint32_t down, uint32_t across) {
    using T = Tiled<Format, WARPS_ACROSS>;
    const bool gated = to.is_gated(), wide = to.wide != 0;
    const uint32_t columns = gated ? T::ROWS / 2 : T::ROWS, stride = columns + 8;
    const uint32_t first_column = tiles.first * TILE_ROWS;
    static_assert(T::POSITIONS * (T::ROWS + 8) * sizeof(bf16) <= T::STAGES * T::STAGE_BYTES);
    bf16* staged = reinterpret_cast<bf16*>(shared);
    const uint32_t g = lane_id() / 4, t = lane_id() % 4;
    float bias[2][2];
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t row = tiles.tile(2 * down + m) * TILE_ROWS + half * 8 + g;
            const bool exists = tiles.exists(2 * down + m) && row < to.matrix.rows;
            bias[m][half] = exists ? to.bias_of(item.expert, row) : 0.0f;
        }
    }
#pragma unroll
    for (int n = 0; n < T::EIGHTS; n++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t position = across * 64 + n * 8 + 2 * t + e;
            if (position < item.count) {
                const float weight = to.input_weight(item.first + position);
                const uint64_t y_row = wide ? static_cast<uint64_t>(to.y_row(item.first + position)) * to.stride : 0;
                const auto put = [&](uint32_t column, float value) {
                    if (!wide) {
                        staged[position * stride + column] = from_float<bf16>(value);
                    } else if (first_column + column < to.width()) {
                        to.store(y_row + first_column + column, value);
                    }
                };
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const float low = sums[0][n][2 * half + e] * weight + bias[0][half];
                    const float high = sums[1][n][2 * half + e] * weight + bias[1][half];
                    if (gated) {
                        put(down * 16 + half * 8 + g, to.gated(low, high));
                    } else {
                        put(down * 32 + half * 8 + g, low);
                        put(down * 32 + 16 + half * 8 + g, high);
                    }
                }
            }
        }
    }
    if (wide) {
        return;
    }
    __syncthreads();
    const uint32_t vectors = columns / 8;
    for (uint32_t i = threadIdx.x; i < item.count * vectors; i += T::THREADS) {
        const uint32_t position = i / vectors, column = i % vectors * 8;
        if (first_column + column < to.width()) {
            const uint64_t row = to.y_row(item.first + position);
            store16(to.y + row * to.stride + first_column + column, load16(staged + position * stride + column));
        }
    }
}

template <typename Format, int WARPS_ACROSS> __device__ __forceinline__ void tiled(const Operands& to) {
    using T = Tiled<Format, WARPS_ACROSS>;
    DYN_SMEM(unsigned char, shared);
    const Item item = load_item(to, to.item(), T::POSITIONS);
    if (item.count == 0) {
        return;
    }
    const Copies<Format, WARPS_ACROSS> copies(to, item);
    const uint32_t chunks = to.matrix.chunks();
    const auto begin = [&](uint32_t chunk) {
        if (chunk < chunks) {
            copies.begin(shared + chunk % T::STAGES * T::STAGE_BYTES, chunk, to);
        }
        cp_async_commit();
    };
#pragma unroll
    for (int stage = 0; stage < T::STAGES - 1; stage++) {
        begin(stage);
    }
    const uint32_t down = warp_id() / WARPS_ACROSS, across = warp_id() % WARPS_ACROSS;
    const int eights = (static_cast<int>(item.count) - static_cast<int>(across) * 64 + 7) / 8;
    float sums[2][T::EIGHTS][4];
#pragma unroll
    for (int i = 0; i < 2 * T::EIGHTS * 4; i++) {
        sums[i / (T::EIGHTS * 4)][i / 4 % T::EIGHTS][i % 4] = 0.0f;
    }
    for (uint32_t chunk = 0; chunk < chunks; chunk++) {
        cp_async_wait<T::STAGES - 2>();
        __syncthreads();
        begin(chunk + T::STAGES - 1);
        multiply_chunk<Format, WARPS_ACROSS>(sums, shared + chunk % T::STAGES * T::STAGE_BYTES, down, across, eights,
                                             to.scaling);
    }
    cp_async_wait<0>();
    __syncthreads();
    store_sums<Format, WARPS_ACROSS>(to, item, copies.tiles, sums, shared, down, across);
}

}  // namespace packed
