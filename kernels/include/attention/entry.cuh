// The parameters of every attention kernel's entry point.
#pragma once
#include "attention/operands.cuh"

#define ATTENTION_PARAMETERS(Kv)                                                                                \
    bf16 *out, const bf16 *q, const Kv *k, const Kv *v, const uint32_t *blocks, const uint32_t *num_items,      \
        const uint32_t *items, uint32_t *tickets, float *partials, const float *sinks, uint32_t heads,          \
        uint32_t kv_heads, uint32_t block_size, uint32_t num_blocks, uint32_t window, uint32_t chunk,           \
        float log2_scale, float cap_scale, float v_scale

#define ATTENTION_OPERANDS(Kv)                                                                                  \
    attention::Operands<Kv> {                                                                                   \
        out, q, k, v, blocks, items, tickets, partials, sinks, heads, kv_heads, block_size, num_blocks, window, \
            chunk, log2_scale, cap_scale, v_scale                                                               \
    }
