// Encodings of small binary floats, for the stand-ins: sign, exponent, fraction, as IEEE 754 and the OCP 8-bit
// specification have them.
#pragma once

#include <cmath>
#include <cstdint>

namespace emu_floats {

struct Format {
    int fraction_bits;
    int bias;
    bool has_infinity;   // all exponent bits set: infinity or NaN; else the largest code alone is NaN
    uint16_t largest;    // finite code
    uint16_t nan;        // canonical
};

constexpr Format HALF{10, 15, true, 0x7bff, 0x7fff};
constexpr Format E4M3{3, 7, false, 0x7e, 0x7f};
constexpr Format E5M2{2, 15, true, 0x7b, 0x7f};

inline float decode(const Format& format, unsigned magnitude) {
    const int exponent = int(magnitude >> format.fraction_bits);
    const int fraction = int(magnitude & ((1u << format.fraction_bits) - 1));
    if (magnitude > format.largest) return format.has_infinity && fraction == 0 ? INFINITY : NAN;
    const int leading = exponent ? 1 << format.fraction_bits : 0;
    return std::ldexp(float(leading + fraction), (exponent ? exponent : 1) - format.bias - format.fraction_bits);
}

// The code of the nearest value to an x of at least 0, the even one if there are two; `overflow` beyond the largest.
inline unsigned encode(const Format& format, double x, unsigned overflow) {
    if (x == 0) return 0;
    int exponent = 0;
    if (std::isinf(x)) return overflow;
    std::frexp(x, &exponent);
    exponent = exponent - 1 < 1 - format.bias ? 1 - format.bias : exponent - 1;
    const double steps = std::nearbyint(std::ldexp(x, format.fraction_bits - exponent));
    // In steps of the last place codes are consecutive, across exponents too.
    const double code = steps + double(exponent + format.bias - 1) * double(1 << format.fraction_bits);
    return code > format.largest ? overflow : unsigned(code);
}

}  // namespace emu_floats
