// Stands in for CUDA's header of this name where no toolkit is installed: makers of short vectors.
#pragma once

#include "vector_types.h"

#define EMU_MAKERS(name, T)                                                                \
    static inline name##1 make_##name##1(T x) { return {x}; }                              \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }              \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_MAKERS(char, signed char)
EMU_MAKERS(uchar, unsigned char)
EMU_MAKERS(short, short)
EMU_MAKERS(ushort, unsigned short)
EMU_MAKERS(int, int)
EMU_MAKERS(uint, unsigned)
EMU_MAKERS(long, long)
EMU_MAKERS(ulong, unsigned long)
EMU_MAKERS(longlong, long long)
EMU_MAKERS(ulonglong, unsigned long long)
EMU_MAKERS(float, float)
EMU_MAKERS(double, double)
#undef EMU_MAKERS
