// Prints what every conversion makes of every code, to compare one set of headers with another: see headers.rs.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

static void put(uint64_t value) { std::fwrite(&value, sizeof value, 1, stdout); }

// NaNs are compared as NaNs: their payload is nobody's promise when they are widened.
static void put_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    put(value == value ? bits : 0x7fc00000u);
}

static void from_float(float value) {
    put(__bfloat16_as_ushort(__float2bfloat16_rn(value)));
    put(__half_as_ushort(__float2half_rn(value)));
    for (auto saturate : {__NV_NOSAT, __NV_SATFINITE}) {
        for (auto kind : {__NV_E4M3, __NV_E5M2}) put(__nv_cvt_float_to_fp8(value, saturate, kind));
    }
}

int main() {
    // Low halves at and beside the rounding boundaries of each target.
    const uint32_t lows[] = {0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (uint32_t code = 0; code < 0x10000; code++) {
        const auto bits = static_cast<unsigned short>(code);
        put_float(__bfloat162float(__ushort_as_bfloat16(bits)));
        put_float(__half2float(__ushort_as_half(bits)));
        const __half_raw half_raw = __ushort_as_half(bits);
        const __nv_bfloat16_raw bf16_raw = __ushort_as_bfloat16(bits);
        const float2 both = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(bits, __NV_E4M3)));
        put_float(both.x);
        put_float(both.y);
        for (auto saturate : {__NV_NOSAT, __NV_SATFINITE}) {
            for (auto kind : {__NV_E4M3, __NV_E5M2}) {
                put(__nv_cvt_halfraw_to_fp8(half_raw, saturate, kind));
                put(__nv_cvt_bfloat16raw_to_fp8(bf16_raw, saturate, kind));
            }
        }
        for (uint32_t low : lows) {
            const uint32_t wide = code << 16 | low;
            float value;
            std::memcpy(&value, &wide, 4);
            from_float(value);
        }
    }
    for (unsigned code = 0; code < 256; code++) {
        put_float(__half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<unsigned char>(code), __NV_E4M3))));
        put_float(__half2float(__half(__nv_cvt_fp8_to_halfraw(static_cast<unsigned char>(code), __NV_E5M2))));
    }
}
