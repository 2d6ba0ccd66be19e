// The one header that every kernel includes. It hides which compiler reads it: nvcc, for a GPU, or a host compiler, for
// the emulator in kernels/emu. A kernel uses plain CUDA C++ and what stands here; inline assembly stands only here.
//
// Rules that the emulator sets: dynamic shared memory through DYN_SMEM, entry points at global scope on one line,
//     extern "C" __global__ void __launch_bounds__(256) name_bf16(const bf16* x, ...)
// with pointers and numbers of at most eight bytes as parameters, and no standard header but those included below.
#pragma once

#include <cfloat>
#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#ifdef __CUDACC__
#define DYN_SMEM(T, name)                                           \
    extern __shared__ __align__(128) unsigned char dynamic_smem[]; \
    T* name = reinterpret_cast<T*>(dynamic_smem)
#else
#include "emulated_device.h"
// The block's dynamic shared memory, aligned to 128 bytes, seen as T. Its size is set by the launch.
#define DYN_SMEM(T, name) T* name = static_cast<T*>(emu::dynamic_shared())
#endif

#include "device/assert.cuh"
#include "device/numbers.cuh"

#include "device/memory.cuh"
#include "device/tensor.cuh"
#include "device/ticket.cuh"
#include "device/warp.cuh"
