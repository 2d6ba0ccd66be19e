// mma and ldmatrix, in the layouts of the PTX ISA. Products are summed in double and rounded once: a GPU's sums differ
// from these by less than they differ from each other between GPUs.
#include <cmath>
#include <cstring>

#include "access.h"
#include "launch.h"

namespace emu {
namespace {

constexpr uint32_t WHOLE_WARP = 0xffffffffu;

struct MmaOperands {
    Operand kind;
    void* d;
    const uint32_t *a, *b;
    const void* c;
};

void need_whole_warp(Launch& launch, const Lanes& lanes, const char* what) {
    for (size_t i = 0; i < 32; i++) {
        if (!lanes[i]) {
            launch.fault(std::string(what) + " by a warp whose lane " + std::to_string(i) +
                             " does not take part: it needs all 32",
                         launch.running->waits_at);
        }
    }
}

float from_e4m3(uint8_t bits) {
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    const float sign = bits & 0x80 ? -1.0f : 1.0f;
    if (exponent == 15 && fraction == 7) return NAN;
    return exponent ? sign * std::ldexp(float(8 + fraction), exponent - 10) : sign * std::ldexp(float(fraction), -9);
}

float from_f16(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return exponent ? sign * std::ldexp(float(1024 + fraction), exponent - 25) : sign * std::ldexp(float(fraction), -24);
}

// Element i of a register's 2 or 4, as the operand kind says.
float element(Operand kind, uint32_t bits, int i) {
    if (kind == Operand::e4m3) {
        static const auto table = [] {
            std::array<float, 256> all;
            for (size_t code = 0; code < 256; code++) all[code] = from_e4m3(uint8_t(code));
            return all;
        }();
        return table[bits >> (8 * i) & 0xff];
    }
    const uint16_t half = uint16_t(bits >> (16 * i));
    return kind == Operand::f16 ? from_f16(half) : of_bits<float>(uint64_t(half) << 16);
}

// Row, column and register position of the fragments; `per` elements lie in a register.
template <typename T, typename Get>
void gather(const Lanes& lanes, int per, T (&a)[16][32], T (&b)[8][32], Get get) {
    const int half = 4 * per;  // columns of a, or rows of b, that registers 0 and 1 of a hold
    for (int lane = 0; lane < 32; lane++) {
        const auto* operands = static_cast<const MmaOperands*>(lanes[size_t(lane)]);
        const int group = lane / 4, first = lane % 4 * per;
        for (int i = 0; i < per; i++) {
            for (int r = 0; r < 4; r++) a[group + 8 * (r & 1)][first + half * (r >> 1) + i] = get(operands->a[r], i);
            for (int r = 0; r < 2; r++) b[group][first + half * r + i] = get(operands->b[r], i);
        }
    }
}

template <typename T, typename Sum> void multiply(const Lanes& lanes, int depth, T (&a)[16][32], T (&b)[8][32]) {
    using Out = std::conditional_t<std::is_same_v<Sum, double>, float, int32_t>;
    for (int lane = 0; lane < 32; lane++) {
        const auto* operands = static_cast<const MmaOperands*>(lanes[size_t(lane)]);
        for (int i = 0; i < 4; i++) {
            const int row = lane / 4 + 8 * (i >> 1), column = lane % 4 * 2 + (i & 1);
            Sum sum = static_cast<const Out*>(operands->c)[i];
            for (int k = 0; k < depth; k++) sum += Sum(a[row][k]) * Sum(b[column][k]);
            static_cast<Out*>(operands->d)[i] = Out(sum);
        }
    }
}

void complete_mma_float(Launch& launch, const Lanes& lanes) {
    need_whole_warp(launch, lanes, "mma");
    const Operand kind = static_cast<const MmaOperands*>(lanes[0])->kind;
    const int per = kind == Operand::e4m3 ? 4 : 2;
    float a[16][32], b[8][32];
    gather(lanes, per, a, b, [kind](uint32_t bits, int i) { return element(kind, bits, i); });
    multiply<float, double>(lanes, 8 * per, a, b);
}

void complete_mma_int(Launch& launch, const Lanes& lanes) {
    need_whole_warp(launch, lanes, "mma");
    int8_t a[16][32], b[8][32];
    gather(lanes, 4, a, b, [](uint32_t bits, int i) { return int8_t(bits >> (8 * i)); });
    multiply<int8_t, uint32_t>(lanes, 32, a, b);
}

struct LdmatrixOperands {
    uint32_t* out;
    int matrices;
    bool transposed;
    const void* row;
};

void complete_ldmatrix(Launch& launch, const Lanes& lanes) {
    need_whole_warp(launch, lanes, "ldmatrix");
    const auto* any = static_cast<const LdmatrixOperands*>(lanes[0]);
    for (int matrix = 0; matrix < any->matrices; matrix++) {
        uint16_t rows[8][8];
        for (int i = 0; i < 8; i++) {
            std::memcpy(rows[i], static_cast<const LdmatrixOperands*>(lanes[size_t(matrix * 8 + i)])->row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            const int group = lane / 4, pair = lane % 4 * 2;
            const uint16_t low = any->transposed ? rows[pair][group] : rows[group][pair];
            const uint16_t high = any->transposed ? rows[pair + 1][group] : rows[group][pair + 1];
            static_cast<LdmatrixOperands*>(lanes[size_t(lane)])->out[matrix] = uint32_t(high) << 16 | low;
        }
    }
}

const Operation MMA_BF16{"mma (bf16)", false, complete_mma_float};
const Operation MMA_F16{"mma (f16)", false, complete_mma_float};
const Operation MMA_E4M3{"mma (e4m3)", false, complete_mma_float};
const Operation MMA_S8{"mma (s8)", false, complete_mma_int};
const Operation LDMATRIX_X2{"ldmatrix_x2", false, complete_ldmatrix};
const Operation LDMATRIX_X4{"ldmatrix_x4", false, complete_ldmatrix};
const Operation LDMATRIX_X2_TRANS{"ldmatrix_x2_trans", false, complete_ldmatrix};
const Operation LDMATRIX_X4_TRANS{"ldmatrix_x4_trans", false, complete_ldmatrix};

}  // namespace

void mma_float(Operand kind, float* d, const uint32_t* a, const uint32_t* b, const float* c) {
    MmaOperands operands{kind, d, a, b, c};
    const Operation& which = kind == Operand::bf16 ? MMA_BF16 : kind == Operand::f16 ? MMA_F16 : MMA_E4M3;
    together(which, WHOLE_WARP, &operands, __builtin_return_address(0));
}

void mma_int(int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c) {
    MmaOperands operands{Operand::bf16, d, a, b, c};
    together(MMA_S8, WHOLE_WARP, &operands, __builtin_return_address(0));
}

void ldmatrix_rows(uint32_t* out, int matrices, bool transposed, const void* row) {
    Launch& launch = here();
    const void* at = __builtin_return_address(0);
    // All lanes' addresses must be valid, also those of which x2 makes no use.
    if (!is_shared(row)) launch.fault("ldmatrix from an address that is not in shared memory", at);
    if (reinterpret_cast<uintptr_t>(row) % 16) launch.fault("ldmatrix from an address that is not a multiple of 16", at);
    if (int(launch.running->lane()) < matrices * 8) check_access(row, 16, Access::read, at);
    LdmatrixOperands operands{out, matrices, transposed, row};
    const Operation& which = matrices == 4 ? (transposed ? LDMATRIX_X4_TRANS : LDMATRIX_X4)
                                           : (transposed ? LDMATRIX_X2_TRANS : LDMATRIX_X2);
    together(which, WHOLE_WARP, &operands, at);
}

}  // namespace emu
