// Stands in for CUDA's header of this name where no toolkit is installed. The names that kernels use, on a CPU.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"

using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;
using __nv_fp8x4_storage_t = unsigned int;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };

static inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t saturate,
                                                       __nv_fp8_interpretation_t kind) {
    const emu_floats::Format& format = kind == __NV_E4M3 ? emu_floats::E4M3 : emu_floats::E5M2;
    if (std::isnan(value)) return static_cast<__nv_fp8_storage_t>(format.nan);
    const unsigned sign = std::signbit(value) ? 0x80u : 0u;
    const unsigned beyond = kind == __NV_E4M3 ? 0x7fu : 0x7cu;
    const unsigned overflow = saturate == __NV_SATFINITE ? format.largest : beyond;
    return static_cast<__nv_fp8_storage_t>(sign | emu_floats::encode(format, std::fabs(value), overflow));
}

static inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t saturate,
                                                            __nv_fp8_interpretation_t kind) {
    const unsigned low = __nv_cvt_float_to_fp8(v.x, saturate, kind);
    const unsigned high = __nv_cvt_float_to_fp8(v.y, saturate, kind);
    return static_cast<__nv_fp8x2_storage_t>(high << 8 | low);
}

static inline __nv_fp8_storage_t __nv_cvt_halfraw_to_fp8(__half_raw value, __nv_saturation_t saturate,
                                                         __nv_fp8_interpretation_t kind) {
    return __nv_cvt_float_to_fp8(__half2float(value), saturate, kind);
}

static inline __nv_fp8_storage_t __nv_cvt_bfloat16raw_to_fp8(__nv_bfloat16_raw value, __nv_saturation_t saturate,
                                                             __nv_fp8_interpretation_t kind) {
    return __nv_cvt_float_to_fp8(__bfloat162float(value), saturate, kind);
}

// Every fp8 is a half exactly.
static inline __half_raw __nv_cvt_fp8_to_halfraw(__nv_fp8_storage_t code, __nv_fp8_interpretation_t kind) {
    if (kind == __NV_E5M2) {
        const bool is_nan = (code & 0x7fu) > 0x7cu;
        return {static_cast<unsigned short>(is_nan ? 0x7fff : code << 8)};
    }
    const float size = emu_floats::decode(emu_floats::E4M3, code & 0x7fu);
    return std::isnan(size) ? __half_raw{0x7fff} : __half_raw(__float2half_rn(code & 0x80u ? -size : size));
}

static inline __half2_raw __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t codes, __nv_fp8_interpretation_t kind) {
    const __nv_fp8_storage_t low = static_cast<__nv_fp8_storage_t>(codes), high = static_cast<__nv_fp8_storage_t>(codes >> 8);
    return {__nv_cvt_fp8_to_halfraw(low, kind).x, __nv_cvt_fp8_to_halfraw(high, kind).x};
}

struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float value) : __x(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)) {}
    explicit operator float() const { return __half2float(__nv_cvt_fp8_to_halfraw(__x, __NV_E4M3)); }
};

struct __nv_fp8_e5m2 {
    __nv_fp8_storage_t __x;
    __nv_fp8_e5m2() = default;
    explicit __nv_fp8_e5m2(float value) : __x(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E5M2)) {}
    explicit operator float() const { return __half2float(__nv_cvt_fp8_to_halfraw(__x, __NV_E5M2)); }
};
