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
