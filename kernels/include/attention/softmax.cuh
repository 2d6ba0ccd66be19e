// The softmax that a warp keeps for its rows while it passes over positions (arXiv:2205.14135, in the form of
// arXiv:2307.08691): M times 16 rows, a lane holding rows g and g + 8 of each as mma.m16n8k16 lays them out.
#pragma once
#include "attention/operands.cuh"
#include "attention/tile.cuh"

namespace attention {

// A lane's part of M x 16 rows times N x 8 columns.
template <int M, int N> using Fragment = float[M][N][4];

// scores = queries * keys^T for RUNS x 16 positions. `load_query(a, m, step)` gives the operand of rows 16 m .. and
// columns 16 step .. of the queries.
template <typename Kv, int D, int M, int RUNS, typename LoadQuery>
__device__ __forceinline__ void multiply_keys(Fragment<M, 2 * RUNS>& scores, const unsigned char* keys,
                                              const LoadQuery& load_query) {
    constexpr int STEPS = Tile<Kv, D>::SPAN / 16;
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < 2 * RUNS; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                scores[m][n][e] = 0;
            }
        }
    }
#pragma unroll
    for (int span = 0; span < Tile<Kv, D>::SPANS; span++) {
        uint32_t r[RUNS][4];
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            load_keys<Kv, D>(r[run], keys, run * RUN, span);
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
                load_query(a[m], m, span * STEPS + i);
            }
#pragma unroll
            for (int n = 0; n < 2 * RUNS; n++) {
                uint32_t b[2];
                key_operand<Kv>(b, r[n / 2], i, n % 2);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    mma_m16n8k16_bf16(scores[m][n], a[m], b, scores[m][n]);
                }
            }
        }
    }
}

// Caps scores, of which Operands::log2_scale then makes what they should be.
template <int M, int N> __device__ __forceinline__ void cap(Fragment<M, N>& scores, float cap_scale) {
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                scores[m][n][e] = fast_tanh(scores[m][n][e] * cap_scale);
            }
        }
    }
}

// Takes out of the scores of positions start .. what a row does not see. `row` is the warp's first row in the item.
template <typename Kv, int M, int N>
__device__ __forceinline__ void mask(Fragment<M, N>& scores, const Operands<Kv>& to, const Item& item, uint32_t row,
                                     uint32_t start) {
    const uint32_t lane = lane_id(), group = to.group();
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint32_t position = item.position + (row + 16 * m + 8 * half + lane / 4) / group;
            // Relative to this lane's first column.
            const int base = static_cast<int>(start + 2 * (lane % 4));
            const int first = static_cast<int>(to.first_visible(position)) - base;
            const int last = static_cast<int>(position) - base;
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    const int at = 8 * n + e;
                    float& score = scores[m][n][2 * half + e];
                    score = at < first || at > last ? -INFINITY : score;
                }
            }
        }
    }
}

// With m the largest score so far: sum is that of exp(score - m), of this lane's columns alone, and values that of
// exp(score - m) * v. Scores and m are before Operands::log2_scale.
template <typename Kv, int D, int M> struct Softmax {
    Fragment<M, D / 8> values;
    float max[M][2];
    float sum[M][2];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < M; m++) {
            max[m][0] = max[m][1] = -INFINITY;
            sum[m][0] = sum[m][1] = 0;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    values[m][n][e] = 0;
                }
            }
        }
    }

    // Takes scores in and leaves exp(score - m) in their place.
    template <int N> __device__ __forceinline__ void add(Fragment<M, N>& scores, float log2_scale) {
        float base[M][2], factor[M][2];
        bool rises = false;
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = max[m][half];
#pragma unroll
                for (int n = 0; n < N; n++) {
                    top = fmaxf(top, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
                }
                top = warp_max<4>(top);
                rises |= top > max[m][half];
                // A row that has seen nothing yet must not subtract infinity from itself.
                base[m][half] = top == -INFINITY ? 0.0f : top * log2_scale;
                // Exactly 1 where the maximum stays, or a row's bits would depend on whether another row's rises.
                const bool stays = top == max[m][half];
                factor[m][half] = stays ? 1.0f : fast_exp2(fmaf(max[m][half], log2_scale, -base[m][half]));
                max[m][half] = top;
            }
        }
        // Maxima settle early; the result is the same where no row's rises.
        if (__any_sync(FULL_WARP, rises)) {
            scale_by(factor);
        }
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int n = 0; n < N; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    scores[m][n][e] = fast_exp2(fmaf(scores[m][n][e], log2_scale, -base[m][e / 2]));
                    sum[m][e / 2] += scores[m][n][e];
                }
            }
        }
    }

    __device__ __forceinline__ void scale_by(const float (&factor)[M][2]) {
#pragma unroll
        for (int m = 0; m < M; m++) {
            sum[m][0] *= factor[m][0];
            sum[m][1] *= factor[m][1];
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    values[m][n][e] *= factor[m][e / 2];
                }
            }
        }
    }

    // values += p * v for RUNS x 16 positions; p is rounded to bf16.
    template <int RUNS>
    __device__ __forceinline__ void multiply_values(const Fragment<M, 2 * RUNS>& p, const unsigned char* tile) {
        constexpr int STEPS = Tile<Kv, D>::SPAN / 16;
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            uint32_t a[M][4];
#pragma unroll
            for (int m = 0; m < M; m++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    a[m][i] = pack_bf16(p[m][2 * run + i / 2][i % 2 * 2], p[m][2 * run + i / 2][i % 2 * 2 + 1]);
                }
            }
#pragma unroll
            for (int span = 0; span < Tile<Kv, D>::SPANS; span++) {
                uint32_t r[4];
                load_values<Kv, D>(r, tile, run * RUN, span);
#pragma unroll
                for (int n = 0; n < 2 * STEPS; n++) {
                    uint32_t b[2];
                    value_operand<Kv>(b, r, n / 2, n % 2);
#pragma unroll
                    for (int m = 0; m < M; m++) {
                        float(&d)[4] = values[m][2 * STEPS * span + n];
                        mma_m16n8k16_bf16(d, a[m], b, d);
                    }
                }
            }
        }
    }
};

}  // namespace attention
