// CUDA's device language for a host compiler: what a kernel may use of it, on top of the emulator's calls below.
// Included by device.cuh; must never be seen by nvcc.
#pragma once

#include <cmath>
#include <cstring>

#include <vector_functions.h>
#include <vector_types.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __noinline__
#undef __launch_bounds__
#undef __restrict__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
// A block runs on one host thread from its first to its last instruction, so a thread's variable is a block's.
#define __shared__ static thread_local
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __grid_constant__

#include "calls.h"

#define threadIdx (emu::thread_index())
#define blockIdx (emu::block_index())
#define blockDim (emu::block_size())
#define gridDim (emu::grid_size())
static constexpr int warpSize = 32;

#include "emulated_functions.h"
