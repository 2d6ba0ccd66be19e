// From the softmax that each warp kept to the output: parts of a block are merged through shared memory; parts of an
// item that the plan split over blocks through the workspace, by the block that is done last, in the parts' order.
#pragma once
#include "attention/softmax.cuh"

namespace attention {

// Softmaxes of ROWS rows as PARTS parts, in shared memory.
template <int D, int ROWS, int PARTS> struct SharedParts {
    float values[PARTS][ROWS][D];
    // In units of log2, scaled.
    float max[PARTS][ROWS];
    float sum[PARTS][ROWS];

    // Columns of a row are permuted, by eights, so that the eight rows which a warp writes at once lie in all banks.
    __device__ __forceinline__ static uint32_t swizzle(uint32_t row) { return (row & (D < 32 ? D / 8 - 1 : 3)) << 3; }

    // Stores a warp's rows, the first of which is `row`.
    template <typename Kv, int M>
    __device__ __forceinline__ void store(uint32_t part, uint32_t row, const Softmax<Kv, D, M>& from,
                                          float log2_scale) {
#pragma unroll
        for (int m = 0; m < M; m++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const uint32_t r = row + 16 * m + 8 * half + lane_id() / 4;
                const float total = warp_sum<4>(from.sum[m][half]);
                if (lane_id() % 4 == 0) {
                    max[part][r] = from.max[m][half] * log2_scale;
                    sum[part][r] = total;
                }
#pragma unroll
                for (int c = 0; c < D / 16; c++) {
                    const float(&a)[4] = from.values[m][2 * c];
                    const float(&b)[4] = from.values[m][2 * c + 1];
                    store_columns<Kv>(values[part][r], 16 * c, swizzle(r), make_float2(a[2 * half], a[2 * half + 1]),
                                      make_float2(b[2 * half], b[2 * half + 1]));
                }
            }
        }
    }
};

// Four columns of a row's softmax.
struct RowPiece {
    float max = -INFINITY;
    float sum = 0;
    float4 values = make_float4(0, 0, 0, 0);

    // Adds others, in their order.
    template <int N>
    __device__ __forceinline__ void merge(const float (&others_max)[N], const float (&others_sum)[N],
                                          const float4 (&others)[N]) {
        float top = max;
#pragma unroll
        for (int i = 0; i < N; i++) {
            top = fmaxf(top, others_max[i]);
        }
        const float base = top == -INFINITY ? 0.0f : top, factor = fast_exp2(max - base);
        max = top;
        sum *= factor;
        values = make_float4(values.x * factor, values.y * factor, values.z * factor, values.w * factor);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const float f = fast_exp2(others_max[i] - base);
            const float4& v = others[i];
            sum = fmaf(others_sum[i], f, sum);
            values = make_float4(fmaf(v.x, f, values.x), fmaf(v.y, f, values.y), fmaf(v.z, f, values.z),
                                 fmaf(v.w, f, values.w));
        }
    }
};

// Floats of a part in the workspace: values [ROWS, D], max [ROWS], sum [ROWS].
template <int D, int ROWS> constexpr size_t PART_FLOATS = ROWS * (D + 2);
// Parts that a thread loads before it waits for the first; where D is small registers are few.
template <int D> constexpr int PARTS_AT_ONCE = D < 128 ? 8 : 16;

template <int D, typename Kv>
__device__ __forceinline__ void write_out(const Operands<Kv>& to, const Item& item, uint32_t kv_head, uint32_t row,
                                          uint32_t column, const RowPiece& piece) {
    const uint32_t group = to.group(), token = row / group, head = kv_head * group + row % group;
    float factor = 1.0f;
    float sum = piece.sum;
    if (to.sinks != nullptr) {
        // One more score that has no value.
        const float sink = __ldg(to.sinks + head) * LOG2E, top = fmaxf(piece.max, sink);
        factor = fast_exp2(piece.max - top);
        sum = sum * factor + fast_exp2(sink - top);
    }
    factor *= to.v_scale / sum;
    const float4& v = piece.values;
    bf16* at = to.out + (static_cast<size_t>(item.token + token) * to.heads + head) * D + column;
    *reinterpret_cast<uint2*>(at) =
        make_uint2(pack_bf16(v.x * factor, v.y * factor), pack_bf16(v.z * factor, v.w * factor));
}

// Calls f(row, column) for every four columns of the item's rows.
template <int D, int THREADS, typename F> __device__ __forceinline__ void for_row_pieces(uint32_t rows, const F& f) {
    for (uint32_t i = threadIdx.x; i < rows * (D / 4); i += THREADS) {
        f(i / (D / 4), i % (D / 4) * 4);
    }
}

// Ends an item, once all threads are at a barrier after SharedParts::store.
template <int D, int ROWS, int PARTS, int THREADS, typename Kv>
__device__ __forceinline__ void finish(const Operands<Kv>& to, const Item& item, uint32_t kv_head,
                                       const SharedParts<D, ROWS, PARTS>& shared) {
    const uint32_t rows = item.tokens * to.group();
    const auto merged = [&](uint32_t row, uint32_t column) {
        float max[PARTS], sum[PARTS];
        float4 values[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            max[p] = shared.max[p][row];
            sum[p] = shared.sum[p][row];
            values[p] = *reinterpret_cast<const float4*>(&shared.values[p][row][column ^ shared.swizzle(row)]);
        }
        RowPiece piece;
        piece.merge(max, sum, values);
        return piece;
    };
    if (item.first_part == WHOLE) {
        for_row_pieces<D, THREADS>(rows, [&](uint32_t row, uint32_t column) {
            write_out<D>(to, item, kv_head, row, column, merged(row, column));
        });
        return;
    }
    float* parts = to.partials + (static_cast<size_t>(item.first_part) * to.kv_heads + kv_head) * PART_FLOATS<D, ROWS>;
    const size_t stride = to.kv_heads * PART_FLOATS<D, ROWS>;
    float* mine = parts + item.part * stride;
    for_row_pieces<D, THREADS>(rows, [&](uint32_t row, uint32_t column) {
        const RowPiece piece = merged(row, column);
        __stcg(reinterpret_cast<float4*>(mine + row * D + column), piece.values);
        if (column == 0) {
            __stcg(mine + ROWS * D + row, piece.max);
            __stcg(mine + ROWS * D + ROWS + row, piece.sum);
        }
    });
    if (!is_last_block(to.tickets + item.first_part * to.kv_heads + kv_head, item.parts)) {
        return;
    }
    for_row_pieces<D, THREADS>(rows, [&](uint32_t row, uint32_t column) {
        constexpr int N = PARTS_AT_ONCE<D>;
        RowPiece piece;
        for (uint32_t start = 0; start < item.parts; start += N) {
            float max[N], sum[N];
            float4 values[N];
            const float* from = parts + start * stride;
#pragma unroll
            for (int i = 0; i < N; i++, from += stride) {
                const bool exists = start + i < item.parts;
                max[i] = exists ? __ldcg(from + ROWS * D + row) : -INFINITY;
                sum[i] = exists ? __ldcg(from + ROWS * D + ROWS + row) : 0.0f;
                values[i] = exists ? __ldcg(reinterpret_cast<const float4*>(from + row * D + column))
                                   : make_float4(0, 0, 0, 0);
            }
            piece.merge(max, sum, values);
        }
        write_out<D>(to, item, kv_head, row, column, piece);
    });
}

}  // namespace attention
