// Picks rows: which tokens' hidden states become logits.
//
//     out[r] = x[rows[r]]        x: bf16 [x_rows, hidden], rows: u32 [count], out: bf16 [count, hidden], hidden % 8 == 0
//
// Where rows[r] is u32::MAX (padding) out[r] is left as it is. Another row that x has not is a mistake that checked
// builds report, and others pass over.
//
// Bytes: 4 * count * hidden. Share of the roofline: not measured yet.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(256) gather_rows_bf16(bf16* out, const bf16* x, const uint32_t* rows, uint32_t x_rows, uint32_t hidden) {
    const uint32_t row = rows[blockIdx.x];
    DEVICE_ASSERT(row == UINT32_MAX || row < x_rows, "a row that is not there");
    if (row >= x_rows) {
        return;
    }
    const bf16* from = x + static_cast<uint64_t>(row) * hidden;
    bf16* to = out + static_cast<uint64_t>(blockIdx.x) * hidden;
    for (uint32_t i = 8 * threadIdx.x; i < hidden; i += 8 * blockDim.x) {
        store16(to + i, load16(from + i));
    }
}
