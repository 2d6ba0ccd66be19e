// Formats of packed weights: how codes and scales lie, and how a lane makes tensor core operands of them.
//
// A matrix [rows, columns] is cut into tiles of 16 rows and chunks of 64 columns; what is beyond it is zero. A chunk of a
// tile is what a warp loads at once: VECTORS x 32 lanes x 16 bytes, [vector][lane], side by side in memory (of Bf16, whose
// matrices lie row by row, only in shared memory). With g = lane / 4 and t = lane % 4, a
// lane has the codes of rows g ("low") and g + 8 ("high") in columns 8 t .. 8 t + 8 of either half ("piece") of the
// chunk: words [piece][low, high][WORDS_A_ROW]. In an mma.m16n8k16 both operands may count their columns in any order as
// long as it is the same; so of a piece's columns the first product takes the lanes' first four, the second the others,
// and 16 bytes of a token are the other operand as they are.
//
// AHEAD is how many chunks a lane of the kernel for few positions loads at once, as registers allow. `decode` gives a row's
// eight codes as four pairs of bf16, exactly and not scaled. A group of columns of a row shares a scale: 32 columns, and a
// byte, in Mxfp4; 2^scaling columns (31: all of them) and a word in the others, which holds an f32 in its upper 24 bits
// and the code that stands for zero in its lower 8. Bf16 has none; GGML's blocks are told in packed/ggml.cuh.
// src/packed/layout.rs is the other side of this.
#pragma once
#include "device.cuh"

namespace packed {

constexpr uint32_t CHUNK = 64;
constexpr uint32_t PIECE = 32;
constexpr uint32_t TILE_ROWS = 16;

template <typename Format> constexpr uint32_t CHUNK_BYTES = Format::VECTORS * 512;

// Which of a lane's scales: of a half (0: the low row) in a piece, and where a piece has two groups of columns, in which.
struct Place {
    int piece;
    int half;
    uint32_t group;
};

// One matrix's size, and how far in bytes its tiles and chunks are from each other.
struct Extent {
    uint32_t rows;
    uint32_t columns;

    __device__ __forceinline__ uint32_t tiles() const { return (rows + TILE_ROWS - 1) / TILE_ROWS; }
    __device__ __forceinline__ uint32_t chunks() const { return (columns + CHUNK - 1) / CHUNK; }
};

// What scaling does to a code in bf16: nothing is lost; little, if the factor comes in two parts; or it is done in float.
enum class Rounding { NONE, OF_PAIRS, OF_FLOATS };

// Where a lane finds its 16 bytes of one vector of a tile's chunks, in formats whose chunks lie side by side.
template <typename Format> struct TileCodes {
    static constexpr uint32_t CHUNK_STEP = CHUNK_BYTES<Format>;

    __device__ __forceinline__ static uint64_t matrix_bytes(const Extent& extent) {
        return static_cast<uint64_t>(extent.tiles()) * tile_bytes(extent);
    }
    __device__ __forceinline__ static uint64_t tile_bytes(const Extent& extent) {
        return static_cast<uint64_t>(extent.chunks()) * CHUNK_STEP;
    }
    // In the first chunk of the matrix's first tile.
    __device__ __forceinline__ static uint32_t offset(const Extent&, uint32_t vector, uint32_t lane) {
        return vector * 512 + lane * 16;
    }
    __device__ __forceinline__ static bool has_row(const Extent& extent, uint32_t tile, uint32_t, uint32_t) {
        return tile < extent.tiles();
    }
    __device__ __forceinline__ static bool has_column(const Extent&, uint32_t, uint32_t, uint32_t) { return true; }
};

// The same of a matrix that lies row by row: vector 2 * piece + half has the lane's row and columns of each.
struct RowCodes {
    static constexpr uint32_t CHUNK_STEP = CHUNK * sizeof(bf16);

    __device__ __forceinline__ static uint64_t matrix_bytes(const Extent& extent) {
        return static_cast<uint64_t>(extent.rows) * extent.columns * sizeof(bf16);
    }
    __device__ __forceinline__ static uint64_t tile_bytes(const Extent& extent) {
        return static_cast<uint64_t>(TILE_ROWS) * extent.columns * sizeof(bf16);
    }
    __device__ __forceinline__ static uint32_t row(uint32_t vector, uint32_t lane) { return vector % 2 * 8 + lane / 4; }
    __device__ __forceinline__ static uint32_t column(uint32_t vector, uint32_t lane) {
        return vector / 2 * PIECE + lane % 4 * 8;
    }
    __device__ __forceinline__ static uint32_t offset(const Extent& extent, uint32_t vector, uint32_t lane) {
        return (row(vector, lane) * extent.columns + column(vector, lane)) * sizeof(bf16);
    }
    __device__ __forceinline__ static bool has_row(const Extent& extent, uint32_t tile, uint32_t vector, uint32_t lane) {
        return tile * TILE_ROWS + row(vector, lane) < extent.rows;
    }
    __device__ __forceinline__ static bool has_column(const Extent& extent, uint32_t chunk, uint32_t vector,
                                                      uint32_t lane) {
        return chunk * CHUNK + column(vector, lane) < extent.columns;
    }
};

// Scales of a chunk's 16 rows as a byte for each of two pieces: [g][piece][low, high].
struct ByteScales {
    // A lane's, in registers.
    static constexpr int WORDS = 1;
    // 16-byte parts of a tile's for a chunk.
    static constexpr uint32_t PARTS = 2;
    // Of a piece.
    static constexpr int GROUPS = 1;
    static constexpr Rounding ROUNDING = Rounding::NONE;
    // What a code is read with.
    using OfCodes = uint32_t;

    // Bytes of a tile's.
    __device__ __forceinline__ static uint64_t tile_bytes(uint32_t chunks, uint32_t) { return chunks * 32; }

    __device__ __forceinline__ static const unsigned char* part(const unsigned char* tile, uint32_t chunk, uint32_t i,
                                                                uint32_t) {
        return tile + chunk * 32 + i * 16;
    }

    // From a tile's in global memory.
    __device__ __forceinline__ static void load(uint32_t (&words)[WORDS], const unsigned char* tile, uint32_t chunk,
                                                uint32_t) {
        words[0] = __ldg(reinterpret_cast<const uint32_t*>(tile + chunk * 32) + lane_id() / 4);
    }

    // From a chunk's in shared memory, where its parts lie one after the other.
    __device__ __forceinline__ static void load_shared(uint32_t (&words)[WORDS], const unsigned char* chunk) {
        words[0] = reinterpret_cast<const uint32_t*>(chunk)[lane_id() / 4];
    }

    // 2^(e - 127)
    __device__ __forceinline__ static float factor(const uint32_t (&words)[WORDS], const Place& at, uint32_t) {
        const uint32_t exponent = words[0] >> (16 * at.piece + 8 * at.half) & 255;
        return __uint_as_float(exponent == 0 ? 0x00400000u : exponent << 23);
    }

    __device__ __forceinline__ static OfCodes of_codes(const uint32_t (&)[WORDS], const Place&, uint32_t) { return 0; }
};

// A word a group of columns: [group][g][low, high].
struct WordScales {
    static constexpr int WORDS = 4;
    static constexpr uint32_t PARTS = 8;
    static constexpr int GROUPS = 1;
    static constexpr Rounding ROUNDING = Rounding::OF_PAIRS;
    using OfCodes = uint32_t;
    static constexpr uint32_t GROUP_BYTES = 64;

    __device__ __forceinline__ static uint64_t tile_bytes(uint32_t chunks, uint32_t scaling) {
        return (static_cast<uint64_t>((chunks * CHUNK - 1) >> scaling) + 1) * GROUP_BYTES;
    }

    __device__ __forceinline__ static const unsigned char* part(const unsigned char* tile, uint32_t chunk, uint32_t i,
                                                                uint32_t scaling) {
        const uint32_t group = (chunk * CHUNK + i / 4 * PIECE) >> scaling;
        return tile + static_cast<uint64_t>(group) * GROUP_BYTES + i % 4 * 16;
    }

    __device__ __forceinline__ static void load(uint32_t (&words)[WORDS], const unsigned char* tile, uint32_t chunk,
                                                uint32_t scaling) {
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            const unsigned char* group = part(tile, chunk, 4 * piece, scaling);
            const uint2 both = __ldg(reinterpret_cast<const uint2*>(group) + lane_id() / 4);
            words[2 * piece] = both.x;
            words[2 * piece + 1] = both.y;
        }
    }

    __device__ __forceinline__ static void load_shared(uint32_t (&words)[WORDS], const unsigned char* chunk) {
#pragma unroll
        for (int piece = 0; piece < 2; piece++) {
            const uint2 both = reinterpret_cast<const uint2*>(chunk + piece * GROUP_BYTES)[lane_id() / 4];
            words[2 * piece] = both.x;
            words[2 * piece + 1] = both.y;
        }
    }

    __device__ __forceinline__ static float factor(const uint32_t (&words)[WORDS], const Place& at, uint32_t) {
        return __uint_as_float(words[2 * at.piece + at.half] & 0xffffff00u);
    }

    // The code that stands for zero.
    __device__ __forceinline__ static OfCodes of_codes(const uint32_t (&words)[WORDS], const Place& at, uint32_t) {
        return words[2 * at.piece + at.half] & 255;
    }
};

// Codes are the weights.
struct NoScales {
    static constexpr int WORDS = 1;
    static constexpr uint32_t PARTS = 0;
    static constexpr int GROUPS = 1;
    static constexpr Rounding ROUNDING = Rounding::NONE;
    using OfCodes = uint32_t;

    __device__ __forceinline__ static uint64_t tile_bytes(uint32_t, uint32_t) { return 0; }
    __device__ __forceinline__ static const unsigned char* part(const unsigned char* tile, uint32_t, uint32_t, uint32_t) {
        return tile;
    }
    __device__ __forceinline__ static void load(uint32_t (&words)[WORDS], const unsigned char*, uint32_t, uint32_t) {
        words[0] = 0;
    }
    __device__ __forceinline__ static void load_shared(uint32_t (&words)[WORDS], const unsigned char*) { words[0] = 0; }
    __device__ __forceinline__ static float factor(const uint32_t (&)[WORDS], const Place&, uint32_t) { return 1.0f; }
    __device__ __forceinline__ static OfCodes of_codes(const uint32_t (&)[WORDS], const Place&, uint32_t) { return 0; }
};

struct Bf16 {
    using Codes = RowCodes;
    using Scales = NoScales;
    static constexpr int VECTORS = 4;
    static constexpr int AHEAD = 2;
    static constexpr int WORDS_A_ROW = 4;

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words, uint32_t) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = words[i];
        }
    }
};

// Nibble i of a word is code 2 i, nibble 4 + i code 2 i + 1: a pair is the same nibble of both halves.
//
// E2M1 (a sign, two bits of exponent, one of mantissa; OCP Microscaling Formats, v1.0) is a bf16 2^-126 as large, once its
// bits stand where a bf16's do, subnormal ones too.
struct Mxfp4 {
    using Codes = TileCodes<Mxfp4>;
    using Scales = ByteScales;
    static constexpr int VECTORS = 1;
    static constexpr int AHEAD = 4;
    static constexpr int WORDS_A_ROW = 1;

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words, uint32_t) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint32_t top = words[0] << (12 - 4 * i);
            pairs[i] = mul2_bf16((top & 0x80008000u) | ((top >> 6) & 0x01c001c0u), 0x7e807e80u);
        }
    }
};

// Unsigned codes of four bits, ordered as in Mxfp4. 0x4300 with a small number in its last bits is 128 and that number.
struct Int4 {
    using Codes = TileCodes<Int4>;
    using Scales = WordScales;
    static constexpr int VECTORS = 1;
    static constexpr int AHEAD = 3;
    static constexpr int WORDS_A_ROW = 1;

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words, uint32_t zero) {
        const uint32_t base = 0x43004300u + zero * 0x00010001u;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = sub2_bf16(((words[0] >> (4 * i)) & 0x000f000fu) | 0x43004300u, base);
        }
    }
};

// Bytes 0 and 2 of a word are a pair, 1 and 3 the next.
//
// Unsigned codes of eight bits; 0x4b000000 with such a code in its last bits is 2^23 and that code. Less zero, a code has
// eight significant bits at most, so that the upper half of the float is all of it.
struct Int8 {
    using Codes = TileCodes<Int8>;
    using Scales = WordScales;
    static constexpr int VECTORS = 2;
    static constexpr int AHEAD = 2;
    static constexpr int WORDS_A_ROW = 2;

    __device__ __forceinline__ static uint32_t pair(uint32_t word, int byte, float base) {
        const float low = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440u + byte)) - base;
        const float high = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7442u + byte)) - base;
        return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632u);
    }

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words, uint32_t zero) {
        const float base = 8388608.0f + static_cast<float>(zero);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            pairs[2 * i] = pair(words[i], 0, base);
            pairs[2 * i + 1] = pair(words[i], 1, base);
        }
    }
};

// e4m3, ordered as in Int8.
struct Fp8 {
    using Codes = TileCodes<Fp8>;
    using Scales = WordScales;
    static constexpr int VECTORS = 2;
    static constexpr int AHEAD = 2;
    static constexpr int WORDS_A_ROW = 2;

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words, uint32_t) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            pairs[2 * i] = widen_even_bytes(words[i]);
            pairs[2 * i + 1] = widen_odd_bytes(words[i]);
        }
    }
};

// Pairs scaled, and rounded to bf16. A factor for pairs is taken in two parts, so that its own rounding does not count.
template <typename Format>
__device__ __forceinline__ void scale(uint32_t (&pairs)[4], const uint32_t (&scales)[Format::Scales::WORDS],
                                      const Place& at, uint32_t scaling) {
    using Scales = typename Format::Scales;
    if constexpr (Scales::ROUNDING == Rounding::OF_FLOATS) {
        const float factor = Scales::factor(scales, at, scaling), minimum = Scales::minimum(scales, at, scaling);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 codes = unpack_bf16(pairs[i]);
            pairs[i] = pack_bf16(fmaf(codes.x, factor, minimum), fmaf(codes.y, factor, minimum));
        }
    } else if constexpr (Scales::PARTS != 0) {
        const float factor = Scales::factor(scales, at, scaling);
        const uint32_t high = both_bf16(factor);
        const uint32_t low = both_bf16(factor - unpack_bf16(high).x);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            pairs[i] = Scales::ROUNDING == Rounding::NONE ? mul2_bf16(pairs[i], high)
                                                          : fma2_bf16(pairs[i], high, mul2_bf16(pairs[i], low));
        }
    }
}

}  // namespace packed
