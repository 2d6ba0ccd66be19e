// GGML's blocks, as GGUF files have them: d * code and what is added to it, for each 32 or 16 columns of a row.
//
// Four bits of a code, or eight, lie as in Int4 and Int8; those beyond lie with the scales, in TOPS words a lane and chunk.
// Of a word of tops (two bits: of a piece; one bit: of the chunk) bits 0 to 15 are of codes with even numbers, the others
// of odd ones; in them a row's four, low row first.
//
// Each row has a word of scales a chunk, and perhaps a word a block, of one chunk or of four, in front of it; `scaling`
// says which:
//
//     HALVES             [d of piece 0, d of piece 1], halves; no word a block
//     HALVES_AND_MINIMA  the same; a chunk is a block, [m of piece 0, m of piece 1]
//     NESTED_AND_MINIMA  four chunks are a block, [d, m]. Groups of 32: a byte, d's factor, and one, m's, for each piece.
//                        Groups of 16: nibbles, d's factor and m's
//     NESTED             likewise, [d, unused]; groups of 16: a signed byte, d's factor
//
// A weight is (code - zero) * factor + minimum, where all factors and minima are exact in float; so what the tensor cores
// get where weights are scaled first is the weight as GGML defines it, rounded once. Zero is the middle of the codes where
// there are no minima, else 0.
#pragma once
#include "packed/formats.cuh"

namespace packed {

enum GgmlScaling : uint32_t { HALVES = 0, HALVES_AND_MINIMA = 1, NESTED_AND_MINIMA = 2, NESTED = 3 };

__device__ __forceinline__ float float_of_half(uint32_t bits) {
    return to_float(__ushort_as_half(static_cast<unsigned short>(bits & 0xffffu)));
}

// GROUPS_A_PIECE: of 32 columns, or two of 16. MIDDLE: of the codes.
template <int GROUPS_A_PIECE, int TOP_BITS, uint32_t MIDDLE> struct GgmlScales {
    static constexpr int GROUPS = GROUPS_A_PIECE;
    // Words of a lane and chunk that hold what four bits of a code do not.
    static constexpr int TOPS = TOP_BITS;
    // The chunk's word of the low and the high row, the block's of both, tops.
    static constexpr int WORDS = 4 + TOPS;
    static constexpr uint32_t ROWS_BYTES = TILE_ROWS * sizeof(uint32_t);
    // A chunk's words, tops, and the block's words.
    static constexpr uint32_t OWN_PARTS = 4 + 8 * TOPS, PARTS = OWN_PARTS + 4;
    static constexpr Rounding ROUNDING = Rounding::OF_FLOATS;
    static constexpr uint32_t CHUNK_BYTES = ROWS_BYTES + TOPS * 128;

    struct OfCodes {
        // Of pair i, bits TOPS * i and the same of the upper half.
        uint32_t tops;
        uint32_t zero;
    };

    // Q6_K is the only one with codes so large.
    static constexpr bool IS_Q6 = GROUPS == 2 && TOPS == 2;

    __device__ __forceinline__ static bool has_minima(uint32_t scaling) {
        return !IS_Q6 && (scaling == HALVES_AND_MINIMA || scaling == NESTED_AND_MINIMA);
    }
    __device__ __forceinline__ static bool is_nested(uint32_t scaling) {
        return GROUPS == 2 || scaling >= NESTED_AND_MINIMA;
    }
    // Blocks have words of their own.
    __device__ __forceinline__ static bool has_head(uint32_t scaling) { return GROUPS == 2 || scaling != HALVES; }

    // Chunks of a block are 1 << this.
    __device__ __forceinline__ static uint32_t block_shift(uint32_t scaling) { return is_nested(scaling) ? 2 : 0; }

    __device__ __forceinline__ static uint32_t head_bytes(uint32_t scaling) { return has_head(scaling) ? ROWS_BYTES : 0; }

    __device__ __forceinline__ static uint32_t block_bytes(uint32_t scaling) {
        return head_bytes(scaling) + (CHUNK_BYTES << block_shift(scaling));
    }

    __device__ __forceinline__ static uint64_t tile_bytes(uint32_t chunks, uint32_t scaling) {
        const uint32_t shift = block_shift(scaling);
        return static_cast<uint64_t>((chunks + (1u << shift) - 1) >> shift) * block_bytes(scaling);
    }

    // The words of the chunk's block.
    __device__ __forceinline__ static const unsigned char* block(const unsigned char* tile, uint32_t chunk,
                                                                 uint32_t scaling) {
        return tile + (chunk >> block_shift(scaling)) * block_bytes(scaling);
    }

    // The chunk's own words, and after them its tops.
    __device__ __forceinline__ static const unsigned char* own(const unsigned char* tile, uint32_t chunk,
                                                               uint32_t scaling) {
        const uint32_t of_block = chunk & ((1u << block_shift(scaling)) - 1);
        return block(tile, chunk, scaling) + head_bytes(scaling) + of_block * CHUNK_BYTES;
    }

    // Nothing where the format has no words a block.
    __device__ __forceinline__ static const unsigned char* part(const unsigned char* tile, uint32_t chunk, uint32_t i,
                                                                uint32_t scaling) {
        if (i < OWN_PARTS) {
            return own(tile, chunk, scaling) + i * 16;
        }
        return has_head(scaling) ? block(tile, chunk, scaling) + (i - OWN_PARTS) * 16 : nullptr;
    }

    __device__ __forceinline__ static void load(uint32_t (&words)[WORDS], const unsigned char* tile, uint32_t chunk,
                                                uint32_t scaling) {
        const unsigned char* at = own(tile, chunk, scaling);
        const uint2 rows = __ldg(reinterpret_cast<const uint2*>(at) + lane_id() / 4);
        words[0] = rows.x;
        words[1] = rows.y;
        uint2 both = make_uint2(0, 0);
        if (has_head(scaling)) {
            both = __ldg(reinterpret_cast<const uint2*>(block(tile, chunk, scaling)) + lane_id() / 4);
        }
        words[2] = both.x;
        words[3] = both.y;
        if constexpr (TOPS == 1) {
            words[4] = __ldg(reinterpret_cast<const uint32_t*>(at + ROWS_BYTES) + lane_id());
        } else if constexpr (TOPS == 2) {
            const uint2 tops = __ldg(reinterpret_cast<const uint2*>(at + ROWS_BYTES) + lane_id());
            words[4] = tops.x;
            words[5] = tops.y;
        }
    }

    __device__ __forceinline__ static void load_shared(uint32_t (&words)[WORDS], const unsigned char* chunk) {
        const uint32_t g = lane_id() / 4;
        const uint2 rows = reinterpret_cast<const uint2*>(chunk)[g];
        const uint2 both = reinterpret_cast<const uint2*>(chunk + CHUNK_BYTES)[g];
        words[0] = rows.x;
        words[1] = rows.y;
        words[2] = both.x;
        words[3] = both.y;
#pragma unroll
        for (int i = 0; i < TOPS; i++) {
            words[4 + i] = reinterpret_cast<const uint32_t*>(chunk + ROWS_BYTES)[lane_id() * TOPS + i];
        }
    }

    __device__ __forceinline__ static OfCodes of_codes(const uint32_t (&words)[WORDS], const Place& at,
                                                       uint32_t scaling) {
        OfCodes of = {0, has_minima(scaling) ? 0u : MIDDLE};
        if constexpr (TOPS == 1) {
            of.tops = words[4] >> (8 * at.piece + 4 * at.half);
        } else if constexpr (TOPS == 2) {
            of.tops = (at.piece == 0 ? words[4] : words[5]) >> (8 * at.half);
        }
        return of;
    }

    __device__ __forceinline__ static float factor(const uint32_t (&words)[WORDS], const Place& at, uint32_t scaling) {
        const uint32_t own = words[at.half] >> (16 * at.piece + 8 * at.group);
        if (!is_nested(scaling)) {
            return float_of_half(own);
        }
        float small;
        if (GROUPS == 1) {
            small = static_cast<float>(own & 255);
        } else if (IS_Q6 || scaling == NESTED) {
            small = static_cast<float>(static_cast<int8_t>(own & 255));
        } else {
            small = static_cast<float>(own & 15);
        }
        return float_of_half(words[2 + at.half]) * small;
    }

    __device__ __forceinline__ static float minimum(const uint32_t (&words)[WORDS], const Place& at, uint32_t scaling) {
        if (!has_minima(scaling)) {
            return 0.0f;
        }
        const uint32_t of_block = words[2 + at.half];
        if (!is_nested(scaling)) {
            return float_of_half(of_block >> (16 * at.piece));
        }
        const uint32_t own = words[at.half] >> (16 * at.piece + 8 * at.group);
        const uint32_t small = GROUPS == 1 ? own >> 8 & 255 : own >> 4 & 15;
        return float_of_half(of_block >> 16) * static_cast<float>(small);
    }
};

// Codes of 4 + TOP_BITS bits, unsigned.
template <int GROUPS, int TOP_BITS, int CHUNKS_AHEAD> struct Ggml {
    using Codes = TileCodes<Ggml>;
    using Scales = GgmlScales<GROUPS, TOP_BITS, 8u << TOP_BITS>;
    static constexpr int VECTORS = 1;
    static constexpr int AHEAD = CHUNKS_AHEAD;
    static constexpr int WORDS_A_ROW = 1;

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words,
                                                  const typename Scales::OfCodes& of) {
        constexpr uint32_t MASK = ((1u << TOP_BITS) - 1) * 0x00100010u;
        const uint32_t base = 0x43004300u + of.zero * 0x00010001u;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t code = (words[0] >> (4 * i)) & 0x000f000fu;
            if constexpr (TOP_BITS != 0) {
                const int up = 4 - TOP_BITS * i;
                code |= (up >= 0 ? of.tops << up : of.tops >> -up) & MASK;
            }
            pairs[i] = sub2_bf16(code | 0x43004300u, base);
        }
    }
};

// Q8_0.
struct Q8 {
    using Codes = TileCodes<Q8>;
    using Scales = GgmlScales<1, 0, 128>;
    static constexpr int VECTORS = 2;
    static constexpr int AHEAD = 2;
    static constexpr int WORDS_A_ROW = 2;

    __device__ __forceinline__ static void decode(uint32_t (&pairs)[4], const uint32_t* words,
                                                  const Scales::OfCodes& of) {
        Int8::decode(pairs, words, of.zero);
    }
};

// Q4_0, Q4_1, Q4_K.
using Q4 = Ggml<1, 0, 3>;
// Q5_0, Q5_1, Q5_K.
using Q5 = Ggml<1, 1, 2>;
// Q6_K.
using Q6 = Ggml<2, 2, 2>;
// Q2_K and Q3_K, whose codes have room to spare.
using Q3 = Ggml<2, 0, 2>;

}  // namespace packed
