// Checks inside kernels, compiled in with KERNEL_CHECKS: debug builds and the emulator.
#pragma once

#ifndef __CUDACC__
#define DEVICE_ASSERT(condition, message) \
    ((condition) ? (void)0 : emu::failed_assertion(#condition, message, __FILE__, __LINE__))
#elif defined(KERNEL_CHECKS)
#include <cstdio>
#define DEVICE_ASSERT(condition, message)                                                                         \
    do {                                                                                                          \
        if (!(condition)) {                                                                                       \
            printf("%s:%d: %s (%s), block %u thread %u\n", __FILE__, __LINE__, message, #condition, blockIdx.x, \
                   threadIdx.x);                                                                                  \
            __trap();                                                                                             \
        }                                                                                                         \
    } while (0)
#else
#define DEVICE_ASSERT(condition, message) ((void)0)
#endif
