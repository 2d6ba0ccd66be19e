// What happens to a layer's merged projection before attention, in one pass: RMS norm of each query and key head where
// the model has one (arXiv:1910.07467), rotary embedding of both by the token's position (arXiv:2104.09864, rotate-half
// pairing; llama3, dual-theta and YaRN scaling are all in inv_freq and attention_scale), and the write of keys and
// values into the paged cache.
//
//     qkv            bf16 [tokens, heads + 2 kv_heads, D]   queries, then keys, then values
//     q              bf16 [tokens, heads, D]
//     k_cache, v_cache   bf16 or fp8 e4m3 [num_blocks, kv_heads, block_size, D]; an fp8 element is value * inv_scale
//     inv_freq       f32 [rotary_dim / 2]; position * inv_freq is rounded to f32, as the models were trained with
//     q_norm, k_norm f32 [D], or null
//     positions, slot_mapping  u32 [tokens]; slot 0xffffffff: neither key nor value is written
//
// Moves qkv once in and once out: 2 (heads + 2 kv_heads) D tokens bf16, less where the cache is fp8.
// Roofline share: not measured yet. Compiled for sm_90a: 64 registers, 4 blocks a multiprocessor, no
// spills, no stack, all large accesses of 16 bytes.
//
// A thread has the same 16 columns of every head that it visits, so that it computes its eight sines and cosines once.
// They are within 2e-6 of exact for positions below 2^24: the multiple of 2 pi nearest to the angle is taken off in two
// exact-product steps (error 2^-22 while it is below 2^22 turns) and a third, and what is left, in [-pi, pi], goes to the
// special function unit (error 2^-21.4 there, CUDA C++ Programming Guide, "Intrinsic Functions").
#include "device.cuh"

namespace {

constexpr int THREADS = 256;
constexpr uint32_t NO_SLOT = 0xffffffffu;

// Sine and cosine of an angle of up to 2^24 radians, without the slow path that sincosf has for large ones.
__device__ __forceinline__ void sin_cos(float angle, float& sin, float& cos) {
    constexpr float TWO_PI_HIGH = 6.28318548202514648f;    // 2 pi rounded to float
    constexpr float TWO_PI_LOW = -1.74845553146951715e-7f;  // the rest
    const float turns = rintf(angle * 0.159154943091895f);
    float rest = fmaf(-turns, TWO_PI_LOW, fmaf(-turns, TWO_PI_HIGH, angle));
    // From 2^21 turns on the first count may be half a turn off.
    rest = fmaf(-rintf(rest * 0.159154943091895f), TWO_PI_HIGH, rest);
    sin = __sinf(rest);
    cos = __cosf(rest);
}

// The 16 columns of a head that a thread has: eight from `low` and eight from `high`, where a pair that turns together
// is columns low + i and high + i. Threads after those of the rotary columns have columns that pass through.
struct Columns {
    uint32_t low, high;
    bool turn;
};

__device__ __forceinline__ Columns columns_of(uint32_t part, uint32_t rotary_dim) {
    const bool turn = 16 * part < rotary_dim;
    return turn ? Columns{8 * part, rotary_dim / 2 + 8 * part, true} : Columns{16 * part, 16 * part + 8, false};
}

__device__ __forceinline__ void load8(float (&out)[8], const float* from) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const Vec16 v = load16_readonly(from + i);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            out[i + j] = __uint_as_float(v.words[j]);
        }
    }
}

// An intrinsic, since plain stores of sixteen bytes were seen compiled to four of four where they are in two branches.
__device__ __forceinline__ void store8(bf16* to, const float (&x)[8], float) {
    const Vec16 v = pack8_bf16(x);
    __stcg(reinterpret_cast<uint4*>(to), make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]));
}

__device__ __forceinline__ void store8(fp8_e4m3* to, const float (&x)[8], float inv_scale) {
    uint32_t words[2];
#pragma unroll
    for (int w = 0; w < 2; w++) {
        words[w] = 0;
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const float2 pair = make_float2(x[4 * w + i] * inv_scale, x[4 * w + i + 1] * inv_scale);
            const uint32_t bits = __nv_cvt_float2_to_fp8x2(pair, __NV_SATFINITE, __NV_E4M3);
            words[w] |= bits << (8 * i);
        }
    }
    __stcg(reinterpret_cast<uint2*>(to), make_uint2(words[0], words[1]));
}

// Norm of a head spread over LANES threads, 16 columns each.
template <int LANES>
__device__ __forceinline__ void rms_norm(float (&low)[8], float (&high)[8], const float* weight, const Columns& at,
                                         float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        squares = fmaf(low[i], low[i], fmaf(high[i], high[i], squares));
    }
    const float scale = rsqrtf(warp_sum<LANES>(squares) / (16 * LANES) + eps);
    float weights[8];
    load8(weights, weight + at.low);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        low[i] *= scale * weights[i];
    }
    load8(weights, weight + at.high);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        high[i] *= scale * weights[i];
    }
}

template <int D, typename Kv>
__device__ __forceinline__ void rope_kv_write(bf16* q, Kv* k_cache, Kv* v_cache, const bf16* qkv, const float* q_norm,
                                              const float* k_norm, const float* inv_freq, const uint32_t* positions,
                                              const uint32_t* slot_mapping, uint32_t num_slots, uint32_t heads,
                                              uint32_t kv_heads, uint32_t block_size, uint32_t rotary_dim, float eps,
                                              float attention_scale, float k_inv_scale, float v_inv_scale) {
    constexpr int LANES = D / 16;
    const uint32_t token = blockIdx.x, slot = slot_mapping[token];
    DEVICE_ASSERT(slot == NO_SLOT || slot < num_slots, "slot_mapping leads outside the cache");
    const uint32_t block = slot / block_size, offset = slot - block * block_size;
    const uint32_t all_heads = heads + 2 * kv_heads;
    const Columns at = columns_of(threadIdx.x % LANES, rotary_dim);
    // Whole warps go round together, since the norm is summed across lanes; a round's columns are on their way while
    // those of the round before are worked on, or angles.
    const uint32_t rounds = (all_heads * LANES + THREADS - 1) / THREADS;
    Vec16 next_low{}, next_high{};
    const auto load = [&](uint32_t round) {
        const uint32_t head = (round * THREADS + threadIdx.x) / LANES;
        if (head < all_heads) {
            const bf16* x = qkv + (static_cast<size_t>(token) * all_heads + head) * D;
            next_low = load16(x + at.low);
            next_high = load16(x + at.high);
        }
    };
    load(0);

    float sin[8], cos[8];
    if (at.turn) {
        const float position = static_cast<float>(positions[token]);
        float frequency[8];
        load8(frequency, inv_freq + at.low);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sin_cos(__fmul_rn(position, frequency[i]), sin[i], cos[i]);
            sin[i] *= attention_scale;
            cos[i] *= attention_scale;
        }
    }
    for (uint32_t round = 0; round < rounds; round++) {
        const uint32_t head = (round * THREADS + threadIdx.x) / LANES;
        const bool exists = head < all_heads;
        float low[8], high[8];
        unpack8_bf16(next_low, low);
        unpack8_bf16(next_high, high);
        load(round + 1);
        const bool is_q = head < heads, is_v = head >= heads + kv_heads;
        if (q_norm != nullptr) {
            // Values and heads that are not there take part, to keep the warp together; their result is not used.
            float normed_low[8], normed_high[8];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                normed_low[i] = low[i];
                normed_high[i] = high[i];
            }
            rms_norm<LANES>(normed_low, normed_high, is_q ? q_norm : k_norm, at, eps);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                low[i] = is_v ? low[i] : normed_low[i];
                high[i] = is_v ? high[i] : normed_high[i];
            }
        }
        if (at.turn && !is_v) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float a = low[i], b = high[i];
                low[i] = fmaf(a, cos[i], -(b * sin[i]));
                high[i] = fmaf(b, cos[i], a * sin[i]);
            }
        }
        if (!exists) {
            continue;
        }
        if (is_q) {
            bf16* to = q + (static_cast<size_t>(token) * heads + head) * D;
            store8(to + at.low, low, 1.0f);
            store8(to + at.high, high, 1.0f);
        } else if (slot != NO_SLOT) {
            const uint32_t kv_head = head - heads - (is_v ? kv_heads : 0);
            const size_t row = (static_cast<size_t>(block) * kv_heads + kv_head) * block_size + offset;
            const size_t to = row * D;
            if (is_v) {
                store8(v_cache + to + at.low, low, v_inv_scale);
                store8(v_cache + to + at.high, high, v_inv_scale);
            } else {
                store8(k_cache + to + at.low, low, k_inv_scale);
                store8(k_cache + to + at.high, high, k_inv_scale);
            }
        }
    }
}

}  // namespace

#define PARAMETERS(Kv)                                                                                                 \
    bf16 *q, Kv *k_cache, Kv *v_cache, const bf16 *qkv, const float *q_norm, const float *k_norm,                      \
        const float *inv_freq, const uint32_t *positions, const uint32_t *slot_mapping, uint32_t num_slots,            \
        uint32_t heads, uint32_t kv_heads, uint32_t block_size, uint32_t rotary_dim, float eps, float attention_scale, \
        float k_inv_scale, float v_inv_scale
#define ARGUMENTS                                                                                                   \
    q, k_cache, v_cache, qkv, q_norm, k_norm, inv_freq, positions, slot_mapping, num_slots, heads, kv_heads,       \
        block_size, rotary_dim, eps, attention_scale, k_inv_scale, v_inv_scale

extern "C" __global__ void __launch_bounds__(256) rope_kv_write_d16_bf16(PARAMETERS(bf16)) { rope_kv_write<16>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d32_bf16(PARAMETERS(bf16)) { rope_kv_write<32>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d64_bf16(PARAMETERS(bf16)) { rope_kv_write<64>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d128_bf16(PARAMETERS(bf16)) { rope_kv_write<128>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d256_bf16(PARAMETERS(bf16)) { rope_kv_write<256>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d64_fp8(PARAMETERS(fp8_e4m3)) { rope_kv_write<64>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d128_fp8(PARAMETERS(fp8_e4m3)) { rope_kv_write<128>(ARGUMENTS); }
extern "C" __global__ void __launch_bounds__(256, 4) rope_kv_write_d256_fp8(PARAMETERS(fp8_e4m3)) { rope_kv_write<256>(ARGUMENTS); }
