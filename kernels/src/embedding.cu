// The rows of the embedding table that the step's tokens name, scaled.
//
//     out[t] = table[id(t)] * scale        out: bf16 [tokens, hidden], table: bf16 [vocab, hidden], hidden % 8 == 0
//
// The product is in f32 and rounded once. ids: u32 [tokens]. A clear bit 31: the token's id; a set one: the id is
// last_tokens[rest], u32 [slots], so that a step can be planned before the token it continues is known. What is outside
// a table is a mistake that checked builds report; others read row 0, so that padding cannot fault.
//
// Bytes: 4 * tokens * hidden, and the ids. Share of the roofline: not measured yet.
#include "device.cuh"

constexpr uint32_t FROM_SLOT = 0x80000000u;

__device__ __forceinline__ uint32_t token_id(uint32_t id, const uint32_t* last_tokens, uint32_t slots, uint32_t vocab) {
    if (id & FROM_SLOT) {
        const uint32_t slot = id & ~FROM_SLOT;
        DEVICE_ASSERT(slot < slots, "a slot outside the table of last tokens");
        id = slot < slots ? last_tokens[slot] : 0;
    }
    DEVICE_ASSERT(id < vocab, "a token id outside the vocabulary");
    return id < vocab ? id : 0;
}

extern "C" __global__ void __launch_bounds__(256) embedding_bf16(bf16* out, const bf16* table, const uint32_t* ids, const uint32_t* last_tokens, uint32_t hidden, uint32_t vocab, uint32_t slots, float scale) {
    const uint64_t id = token_id(ids[blockIdx.x], last_tokens, slots, vocab);
    const bf16* from = table + id * hidden;
    bf16* to = out + static_cast<uint64_t>(blockIdx.x) * hidden;
    for (uint32_t i = 8 * threadIdx.x; i < hidden; i += 8 * blockDim.x) {
        float values[8];
        unpack8_bf16(load16_readonly(from + i), values);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            values[j] *= scale;
        }
        store16(to + i, pack8_bf16(values));
    }
}
