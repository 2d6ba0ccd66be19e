// Number types and their conversions. Arithmetic is done in float.
#pragma once

using bf16 = __nv_bfloat16;
using fp8_e4m3 = __nv_fp8_e4m3;

__device__ __forceinline__ float to_float(float x) { return x; }

__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

__device__ __forceinline__ float to_float(half x) { return __half2float(x); }

__device__ __forceinline__ float to_float(fp8_e4m3 x) {
    return __half2float(half(__nv_cvt_fp8_to_halfraw(x.__x, __NV_E4M3)));
}

// Rounds to nearest even. fp8 saturates at +-448; bf16 and half overflow to infinity.
template <typename T> __device__ __forceinline__ T from_float(float x);

template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }

template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

template <> __device__ __forceinline__ half from_float<half>(float x) { return __float2half_rn(x); }

template <> __device__ __forceinline__ fp8_e4m3 from_float<fp8_e4m3>(float x) {
    fp8_e4m3 y;
    y.__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    return y;
}

// Two bf16 in a register, the lower address in the lower half: an operand of mma.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t bits) {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}

// Arithmetic on two bf16 in a register, each result rounded once.
__device__ __forceinline__ __nv_bfloat162 bf16_pair(uint32_t bits) {
    __nv_bfloat162 pair;
    memcpy(&pair, &bits, 4);
    return pair;
}

__device__ __forceinline__ uint32_t bits_of_pair(const __nv_bfloat162& pair) {
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}

__device__ __forceinline__ uint32_t mul2_bf16(uint32_t a, uint32_t b) {
    return bits_of_pair(__hmul2(bf16_pair(a), bf16_pair(b)));
}

__device__ __forceinline__ uint32_t sub2_bf16(uint32_t a, uint32_t b) {
    return bits_of_pair(__hsub2(bf16_pair(a), bf16_pair(b)));
}

// a * b + c
__device__ __forceinline__ uint32_t fma2_bf16(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
    return bits_of_pair(__hfma2(bf16_pair(a), bf16_pair(b), bf16_pair(c)));
#else
    const float2 x = unpack_bf16(a), y = unpack_bf16(b), z = unpack_bf16(c);
    return pack_bf16(fmaf(x.x, y.x, z.x), fmaf(x.y, y.y, z.y));
#endif
}

// The same bf16 twice, rounded from a float.
__device__ __forceinline__ uint32_t both_bf16(float x) { return pack_bf16(x, x); }

// Two bf16 of the fp8 elements in bytes 1 and 3. An e4m3 is a bf16 2^-120 as large, once its bits stand where a bf16's
// do, subnormal ones too; a NaN becomes 480, since whoever wrote it has a NaN in its own data already.
__device__ __forceinline__ uint32_t widen_odd_bytes(uint32_t bytes) {
    const uint32_t small = (bytes & 0x80008000u) | ((bytes & 0x7f007f00u) >> 4);
    return mul2_bf16(small, 0x7b807b80u);
}

__device__ __forceinline__ uint32_t widen_even_bytes(uint32_t bytes) { return widen_odd_bytes(bytes << 8); }
