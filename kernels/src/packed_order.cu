// Brings the columns of x into the order in which a matrix's are stored.
//
//     out[p, i] = x[p, order[i]]        x, out: bf16 [positions, columns], order: u32 [columns], columns % 8 == 0
//
// Bytes: 4 * positions * columns, and order once a position. Share of the roofline: not measured yet.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(256) packed_order_bf16(bf16* out, const bf16* x, const uint32_t* order, uint32_t columns) {
    const uint16_t* from = reinterpret_cast<const uint16_t*>(x) + static_cast<uint64_t>(blockIdx.x) * columns;
    bf16* to = out + static_cast<uint64_t>(blockIdx.x) * columns;
    for (uint32_t i = 8 * threadIdx.x; i < columns; i += 8 * blockDim.x) {
        const Vec16 first = load16_readonly(order + i), second = load16_readonly(order + i + 4);
        Vec16 v;
#pragma unroll
        for (int pair = 0; pair < 4; pair++) {
            const Vec16& four = pair < 2 ? first : second;
            const uint32_t low = four.words[2 * pair % 4], high = four.words[(2 * pair + 1) % 4];
            DEVICE_ASSERT(low < columns && high < columns, "a column that is not there");
            v.words[pair] = __ldg(from + low) | static_cast<uint32_t>(__ldg(from + high)) << 16;
        }
        store16(to + i, v);
    }
}
