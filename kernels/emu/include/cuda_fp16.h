// Stands in for CUDA's header of this name where no toolkit is installed. The names that kernels use, on a CPU.
#pragma once

#include <cstring>

#include "small_floats.h"
#include "vector_functions.h"

struct __half_raw {
    unsigned short x;
};

struct alignas(4) __half2_raw {
    unsigned short x, y;
};

struct __half {
    unsigned short __x;
    __half() = default;
    constexpr __half(const __half_raw& raw) : __x(raw.x) {}
    __half(float value);
    operator __half_raw() const { return {__x}; }
    operator float() const;
};
using half = __half;

struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    constexpr __half2(const __half& low, const __half& high) : x(low), y(high) {}
    constexpr __half2(const __half2_raw& raw) : x(__half_raw{raw.x}), y(__half_raw{raw.y}) {}
};
using half2 = __half2;

static inline float __half2float(__half value) {
    const float size = emu_floats::decode(emu_floats::HALF, value.__x & 0x7fffu);
    return value.__x & 0x8000u ? -size : size;
}

static inline __half __float2half_rn(float value) {
    if (std::isnan(value)) return __half_raw{emu_floats::HALF.nan};
    const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
    return __half_raw{static_cast<unsigned short>(sign | emu_floats::encode(emu_floats::HALF, std::fabs(value), 0x7c00u))};
}

static inline __half __float2half(float value) { return __float2half_rn(value); }
inline __half::__half(float value) : __half(__float2half_rn(value)) {}
inline __half::operator float() const { return __half2float(*this); }

static inline unsigned short __half_as_ushort(__half value) { return value.__x; }
static inline __half __ushort_as_half(unsigned short bits) { return __half_raw{bits}; }
static inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
static inline __half2 __floats2half2_rn(float low, float high) { return {__float2half_rn(low), __float2half_rn(high)}; }
static inline __half2 __float22half2_rn(float2 v) { return __floats2half2_rn(v.x, v.y); }
static inline __half2 __float2half2_rn(float v) { return __floats2half2_rn(v, v); }
static inline __half2 __halves2half2(__half low, __half high) { return {low, high}; }
static inline __half2 __half2half2(__half both) { return {both, both}; }
static inline __half __low2half(__half2 v) { return v.x; }
static inline __half __high2half(__half2 v) { return v.y; }
static inline float __low2float(__half2 v) { return __half2float(v.x); }
static inline float __high2float(__half2 v) { return __half2float(v.y); }

// Computed in float: 24 bits hold twice 11 and 2 more, so that rounding twice gives what rounding once does.
static inline __half __hadd(__half a, __half b) { return __float2half_rn(__half2float(a) + __half2float(b)); }
static inline __half __hsub(__half a, __half b) { return __float2half_rn(__half2float(a) - __half2float(b)); }
static inline __half __hmul(__half a, __half b) { return __float2half_rn(__half2float(a) * __half2float(b)); }
static inline __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
static inline __half2 __hsub2(__half2 a, __half2 b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }
static inline __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
