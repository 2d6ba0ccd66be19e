// Soft caps logits in place: x = cap * tanh(x / cap) (arXiv:2408.00118).
//
// logits: f32 [count], aligned to 16 bytes; any count. NaN stays NaN.
//
// Bytes: 8 * count. Share of the roofline: not measured yet.
#include "device.cuh"

__device__ __forceinline__ float softcap(float x, float cap) { return cap * tanhf(x / cap); }

extern "C" __global__ void __launch_bounds__(256) softcap_f32(float* logits, uint64_t count, float cap) {
    const uint64_t at = 4 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (at + 4 <= count) {
        Vec16 v = load16(logits + at);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            v.words[j] = __float_as_uint(softcap(__uint_as_float(v.words[j]), cap));
        }
        store16(logits + at, v);
        return;
    }
    for (uint64_t i = at; i < count; i++) {
        logits[i] = softcap(logits[i], cap);
    }
}
