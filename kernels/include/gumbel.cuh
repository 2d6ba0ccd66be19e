// Standard Gumbel noise as a function of (seed, index, token): adding it to log weights and taking the largest draws from
// the distribution of the weights (Gumbel, 1954; arXiv:1411.0030).
//
// Every operation is one that IEEE 754 defines, written out where a compiler could fuse, so that GPU, emulator and a
// host's copy give the same bits.
#pragma once

#include "hash.cuh"

// ln(2^exponent * (1 + f)), for f from sqrt(1/2) - 1 to sqrt(2) - 1; off by at most 1e-7 of the result or of the exponent.
__device__ __forceinline__ float ln_of_parts(float exponent, float f) {
    // (ln(1 + f) - f + f^2 / 2) / f^3, interpolated at Chebyshev's points; the error relative to ln(1 + f) is 2e-8.
    float p = -0.0790274367f;
    p = __fmaf_rn(p, f, 0.1262231916f);
    p = __fmaf_rn(p, f, -0.1299818307f);
    p = __fmaf_rn(p, f, 0.1421449631f);
    p = __fmaf_rn(p, f, -0.1664128154f);
    p = __fmaf_rn(p, f, 0.2000104487f);
    p = __fmaf_rn(p, f, -0.2500030696f);
    p = __fmaf_rn(p, f, 0.3333333135f);
    const float square = __fmul_rn(f, f);
    const float tail = __fmaf_rn(__fmul_rn(square, f), p, __fmul_rn(-0.5f, square));
    return __fmaf_rn(exponent, 0.6931471806f, __fadd_rn(f, tail));
}

// The exponent of x for a fraction from sqrt(1/2) to sqrt(2), and that fraction less 1. x is normal and above 0.
__device__ __forceinline__ int split_exponent(float x, float& f) {
    constexpr int SQRT_HALF = 0x3f3504f3;
    const int exponent = (__float_as_int(x) - SQRT_HALF) >> 23;
    f = __fsub_rn(__int_as_float(__float_as_int(x) - exponent * (1 << 23)), 1.0f);
    return exponent;
}

// The sequence of one draw. `index` is the number of the token in its output.
__device__ __forceinline__ uint64_t draw_stream(uint64_t seed, uint32_t index) {
    return hash_at(hash_stream(seed), index);
}

// The random bits that a token's noise is made of.
__device__ __forceinline__ uint32_t noise_bits(uint64_t stream, uint32_t token) {
    return static_cast<uint32_t>(hash_at(stream, token) >> 32);
}

// No noise is above this.
constexpr float MOST_NOISE = 23.0f;

// The noise of these bits is not above this, which is at most 0.8 too high for those that matter. Far cheaper.
__device__ __forceinline__ float noise_bound(uint32_t bits) {
    // -ln(1 - a) is more than a, which is more than 2^-(leading zeros + 1).
    return __fmaf_rn(__int2float_rn(__clz(static_cast<int>(bits)) + 1), 0.6931472f, 0.01f);
}

// -ln(-ln(1 - a)) with a uniform in (0, 1), in steps of 2^-32 where it is small: noise up to 22.8 is told apart, and
// none is below -2.9.
__device__ __forceinline__ float gumbel(uint32_t bits) {
    constexpr float BELOW_ONE = 1.0f - 0x1p-24f;
    const float a = fminf(__fmaf_rn(__uint2float_rn(bits), 0x1p-32f, 0x1p-33f), BELOW_ONE);
    float f;
    int exponent = split_exponent(__fsub_rn(1.0f, a), f);
    // Keeps the digits of a small `a`, which 1 - a has lost.
    f = exponent == 0 ? -a : f;
    const float exponential = -ln_of_parts(__int2float_rn(exponent), f);
    exponent = split_exponent(exponential, f);
    return -ln_of_parts(__int2float_rn(exponent), f);
}
