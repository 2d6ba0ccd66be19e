// Gated activations of feed-forward blocks, and the plain sum that ends a residual stream.
//
//     silu_mul:       out = gate / (1 + e^-gate) * up                                               (arXiv:2002.05202)
//     gelu_tanh_mul:  out = gate / 2 * (1 + tanh(sqrt(2/pi) (gate + 0.044715 gate^3))) * up         (arXiv:1606.08415)
//     add:            out = x + y                                                        out may be x or y
//
// gate_up: bf16 [tokens, 2 * width], a token's gates and then its ups; out: bf16 [tokens, width]; width % 8 == 0.
// Arithmetic is in f32 and rounded once. (1 + tanh(u)) / 2 is computed as 1 / (1 + e^-2u), which keeps its digits where
// u is negative.
//
// Bytes: 6 for each element of out. Share of the roofline: not measured yet.
#include "device.cuh"

// Where 1 + e^x overflows the quotient is 0, as it should be.
__device__ __forceinline__ float logistic_product(float gate, float minus_x) {
    return __fdividef(gate, 1.0f + __expf(minus_x));
}

struct Silu {
    __device__ __forceinline__ float operator()(float gate) const { return logistic_product(gate, -gate); }
};

struct GeluTanh {
    __device__ __forceinline__ float operator()(float gate) const {
        constexpr float MINUS_TWICE_SQRT_2_OVER_PI = -1.5957691216f;
        return logistic_product(gate, MINUS_TWICE_SQRT_2_OVER_PI * gate * (0.044715f * gate * gate + 1.0f));
    }
};

// blockIdx.x is the token, blockIdx.y the part of its row.
template <typename Activation> __device__ __forceinline__ void gated(bf16* out, const bf16* gate_up, uint32_t width) {
    const uint32_t column = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= width) {
        return;
    }
    const uint64_t token = blockIdx.x;
    const bf16* from = gate_up + token * 2 * width + column;
    const Vec16 gates = load16(from);
    const Vec16 ups = load16(from + width);
    float gate[8];
    float up[8];
    unpack8_bf16(gates, gate);
    unpack8_bf16(ups, up);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        gate[j] = Activation()(gate[j]) * up[j];
    }
    store16(out + token * width + column, pack8_bf16(gate));
}

extern "C" __global__ void __launch_bounds__(256) silu_mul_bf16(bf16* out, const bf16* gate_up, uint32_t width) {
    gated<Silu>(out, gate_up, width);
}

extern "C" __global__ void __launch_bounds__(256) gelu_tanh_mul_bf16(bf16* out, const bf16* gate_up, uint32_t width) {
    gated<GeluTanh>(out, gate_up, width);
}

extern "C" __global__ void __launch_bounds__(256) add_bf16(bf16* out, const bf16* x, const bf16* y, uint64_t count) {
    const uint64_t at = 8 * (static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x);
    if (at >= count) {
        return;
    }
    const Vec16 xs = load16(x + at);
    const Vec16 ys = load16(y + at);
    float a[8];
    float b[8];
    unpack8_bf16(xs, a);
    unpack8_bf16(ys, b);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        a[j] += b[j];
    }
    store16(out + at, pack8_bf16(a));
}
