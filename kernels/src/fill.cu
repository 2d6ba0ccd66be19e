// Dummy weights, made where they are needed: close to normal, mean 0, and a function of seed and index alone.
//
//     out[i] = (sum of eight uniform 16-bit numbers - their mean) * step        out: bf16 [count], aligned to 16 bytes
//
// The numbers are two 64-bit hashes of (seed, i). Their centred, doubled sum is an integer below 2^20, exact in f32, so
// that the host can make the same values to the bit; fill.rs does, and computes `step` from the standard deviation.
// The sum of eight (Irwin and Hall) reaches to 4.9 deviations.
//
// For packed weights, random bits (word i is half a hash, of which the bits in `keep` stay), or one word over and over.
//
// Bytes: 2 * count; 4 * words. Share of the roofline: not measured yet.
#include "hash.cuh"

__device__ __forceinline__ int sum_of_quarters(uint64_t bits) {
    return static_cast<int>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
}

__device__ __forceinline__ float normal_at(uint64_t stream, uint64_t index, float step) {
    const int sum = sum_of_quarters(hash_at(stream, 2 * index)) + sum_of_quarters(hash_at(stream, 2 * index + 1));
    return static_cast<float>(2 * sum - 8 * 65535) * step;
}

extern "C" __global__ void __launch_bounds__(256) fill_normal_bf16(bf16* out, uint64_t count, uint64_t seed, float step) {
    const uint64_t stream = hash_stream(seed);
    const uint64_t stride = 8 * static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t at = 8 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x); at < count; at += stride) {
        float values[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[j] = normal_at(stream, at + j, step);
        }
        if (at + 8 <= count) {
            store16(out + at, pack8_bf16(values));
            continue;
        }
        for (uint64_t i = at; i < count; i++) {
            out[i] = from_float<bf16>(normal_at(stream, i, step));
        }
    }
}

extern "C" __global__ void __launch_bounds__(256) fill_bits(uint32_t* out, uint64_t words, uint64_t seed, uint32_t keep) {
    const uint64_t stream = hash_stream(seed);
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += stride) {
        out[i] = static_cast<uint32_t>(hash_at(stream, i) >> 32) & keep;
    }
}

extern "C" __global__ void __launch_bounds__(256) fill_word(uint32_t* out, uint64_t words, uint32_t value) {
    const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
    for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += stride) {
        out[i] = value;
    }
}
