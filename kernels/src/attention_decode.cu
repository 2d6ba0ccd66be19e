// Causal attention over the paged KV cache (arXiv:2309.06180) of the sequences that have at most 16 rows (query token x
// head of a KV head's group) in the step: decode steps, drafts, short tails of prompts. The positions of a sequence may
// be split over blocks, which merge in order (the split-KV of FlashDecoding). All heads of a group share one pass over
// keys and values, on the tensor cores. attention_prefill.cu has the same operands:
//
//     out, q          bf16 [tokens, heads, D]
//     k, v            bf16 or fp8 e4m3 [num_blocks, kv_heads, block_size, D], block_size a multiple of 16
//     blocks          u32, the packed block tables
//     num_items       u32, how many of the grid's items are real; items u32 [grid / kv_heads, 8]: the plan, which
//                     src/attention/plan.rs makes
//     tickets         u32, zero before and after
//     partials        f32, the parts of split sequences: 16 x (D + 2) for each part and KV head
//     sinks           f32 [heads] or null
//
// A query at position p sees p - window + 1 .. p, and of these what is in its own chunk; scores may be capped. Weights
// are rounded to bf16 before they multiply values, sums are in f32. The bits of a sequence that is not split depend on
// its own tokens and length alone; where it is split (few sequences on a large GPU) also on how, which the plan decides
// for the whole batch.
//
// Must move keys and values of all visible positions once, q and out: with long contexts
// 2 * kv_heads * D * bytes an element for each position. Parts add 16 * D * heads / kv_heads bytes or less for each
// 128 or more positions. Roofline share: not measured yet.
//
// Compiled for sm_90a, registers and blocks a multiprocessor: D = 128 bf16 168 and fp8 168 at most, 3; D = 64 at most
// 128, 3 (bf16) and 4 (fp8); D = 256 255, 3 (bf16, of 64 threads) and 2 (fp8). No spills, no stack. Copies are
// LDGSTS.128, operands come by LDSM.x4, products are HMMA.16816. At least 64 KiB of keys and values are under way on a
// multiprocessor, where 33 KiB would cover a microsecond at 4.3 TB/s on 132 of them.
//
// An fp8 element costs about two instructions to widen, which is half of what the schedulers can issue at full
// bandwidth.
#include "attention/decode.cuh"
#include "attention/entry.cuh"

extern "C" __global__ void __launch_bounds__(128) attention_decode_d16_bf16(ATTENTION_PARAMETERS(bf16)) { attention::decode<bf16, 16>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_d32_bf16(ATTENTION_PARAMETERS(bf16)) { attention::decode<bf16, 32>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 4) attention_decode_d64_bf16(ATTENTION_PARAMETERS(bf16)) { attention::decode<bf16, 64>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_d128_bf16(ATTENTION_PARAMETERS(bf16)) { attention::decode<bf16, 128>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(64) attention_decode_d256_bf16(ATTENTION_PARAMETERS(bf16)) { attention::decode<bf16, 256>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 4) attention_decode_d64_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::decode<fp8_e4m3, 64>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_decode_d128_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::decode<fp8_e4m3, 128>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
extern "C" __global__ void __launch_bounds__(128) attention_decode_d256_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::decode<fp8_e4m3, 256>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
