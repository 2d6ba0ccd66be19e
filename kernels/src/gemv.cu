// Products of a weight matrix with few tokens, for decode: bandwidth is all that counts.
//
//     y[t, n] = sum over k of x[t, k] * w[n, k] + bias[n]      x: bf16 [tokens, columns], w: bf16 [rows, columns],
//                                                              bias: f32 [rows] or nothing, y: bf16 or f32 [tokens, rows];
//                                                              1 to 8 tokens, columns % 8 == 0
//
// A block of 8 warps takes 16 rows; a warp takes 128 of every 1024 columns, and the warps' sums are added at the end. The
// products run on the tensor cores, where 8 tokens cost no more instructions than one: a lane's 16 bytes of a weight row
// and of a token are two operands of mma.m16n8k16 as they are, because both sides may count their columns in any order
// as long as it is the same. A token's bits do not depend on how many others there are.
//
// Bytes: 2 * rows * columns: each weight is read once, past L1 and first to leave L2. A lane has 8 loads of 16 bytes of
// weights under way before the first use, 4 KiB a warp; at 24 warps, 96 KiB a multiprocessor, about three times what it
// takes to cover a latency of a microsecond at 4.3 TB/s over 132 of them. Tokens come through L1.
// Share of the roofline: not measured yet.
#include "device.cuh"

constexpr int WARPS = 8;
constexpr int ROWS = 16;
constexpr int TOKENS = 8;
// Pieces of 32 columns that a warp loads at once.
constexpr int PIECES = 4;
constexpr uint32_t WARP_COLUMNS = 32 * PIECES;

struct Operands {
    Vec16 low[PIECES];   // row g
    Vec16 high[PIECES];  // row g + 8
    Vec16 token[PIECES];
};

// What does not exist counts as zero.
__device__ __forceinline__ void load(Operands& operands, const bf16* low, const bf16* high, const bf16* token,
                                     uint32_t column, uint32_t columns) {
    const Vec16 zero = {{0, 0, 0, 0}};
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const uint32_t at = column + 32 * i;
        const bool inside = at < columns;
        operands.low[i] = inside && low != nullptr ? load16_once(low + at) : zero;
        operands.high[i] = inside && high != nullptr ? load16_once(high + at) : zero;
        operands.token[i] = inside && token != nullptr ? load16_readonly(token + at) : zero;
    }
}

__device__ __forceinline__ void multiply(const Operands& operands, float (&first)[4], float (&second)[4]) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const uint32_t* low = operands.low[i].words;
        const uint32_t* high = operands.high[i].words;
        const uint32_t* token = operands.token[i].words;
        mma_m16n8k16_bf16(first, {low[0], high[0], low[1], high[1]}, {token[0], token[1]}, first);
        mma_m16n8k16_bf16(second, {low[2], high[2], low[3], high[3]}, {token[2], token[3]}, second);
    }
}

template <typename Out>
__device__ __forceinline__ void gemv(Out* y, const bf16* x, const bf16* w, const float* bias, uint32_t tokens,
                                     uint32_t rows, uint32_t columns) {
    __shared__ float partial[WARPS][ROWS][TOKENS];
    const uint32_t g = lane_id() / 4;
    const uint32_t t = lane_id() % 4;
    const uint32_t first_row = blockIdx.x * ROWS;
    const auto row_of = [&](const bf16* matrix, uint32_t row, uint32_t count) {
        return row < count ? matrix + static_cast<uint64_t>(row) * columns : nullptr;
    };
    const bf16* low = row_of(w, first_row + g, rows);
    const bf16* high = row_of(w, first_row + g + 8, rows);
    const bf16* token = row_of(x, g, tokens);
    // Two chains of sums, for the latency of mma.
    float even[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    float odd[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint32_t start = warp_id() * WARP_COLUMNS; start < columns; start += WARPS * WARP_COLUMNS) {
        Operands operands;
        load(operands, low, high, token, start + 8 * t, columns);
        __syncwarp();
        multiply(operands, even, odd);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        partial[warp_id()][g + 8 * (i / 2)][2 * t + i % 2] = even[i] + odd[i];
    }
    __syncthreads();
    const uint32_t row = threadIdx.x % ROWS;
    const uint32_t of_token = threadIdx.x / ROWS;
    if (of_token < tokens && first_row + row < rows) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            sum += partial[warp][row][of_token];
        }
        const float added = bias == nullptr ? 0.0f : __ldg(bias + first_row + row);
        y[static_cast<uint64_t>(of_token) * rows + first_row + row] = from_float<Out>(sum + added);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3) gemv_bf16(bf16* y, const bf16* x, const bf16* w, const float* bias, uint32_t tokens, uint32_t rows, uint32_t columns) {
    gemv(y, x, w, bias, tokens, rows, columns);
}

extern "C" __global__ void __launch_bounds__(256, 3) gemv_f32(float* y, const bf16* x, const bf16* w, const float* bias, uint32_t tokens, uint32_t rows, uint32_t columns) {
    gemv(y, x, w, bias, tokens, rows, columns);
}
