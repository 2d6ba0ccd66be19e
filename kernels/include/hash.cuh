// Random bits as a function of where they are used: no state, so that any thread can make them, in any order.
#pragma once

#include "device.cuh"

constexpr uint64_t GOLDEN_GAMMA = 0x9E3779B97F4A7C15ull;

// The finalizer of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
__device__ __forceinline__ uint64_t mix64(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

// The start of a sequence that depends on all of `seed`: neighbouring seeds do not share one shifted by a place.
__device__ __forceinline__ uint64_t hash_stream(uint64_t seed) { return mix64(seed + GOLDEN_GAMMA); }

// Number `index` of a sequence.
__device__ __forceinline__ uint64_t hash_at(uint64_t stream, uint64_t index) {
    return mix64(stream + (index + 1) * GOLDEN_GAMMA);
}
