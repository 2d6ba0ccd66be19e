// Causal attention over the paged KV cache of the sequences with many query tokens in the step: prompts and chunks of
// prompts, after any number of earlier positions. Operands as in attention_decode.cu, parts of 128 rows (64 where D is
// 256); items as src/attention/plan.rs makes them; how in attention/prefill.cuh.
//
// The bits of a row of an item that is not split depend on its own sequence up to its position, and not on the chunk or
// the batch it came in.
//
// 4 * heads * D operations for each pair of a query and a position that it sees, on the tensor cores; keys and values
// come from L2 once for each 128 rows. Share of the matrix ceiling: not measured yet.
//
// Compiled for sm_90a, registers and blocks a multiprocessor: D = 128 254, 2; D = 64 158, 3; D = 256 238, 2. No spills,
// no stack. Copies are LDGSTS.128, operands come by LDSM.x4, products are HMMA.16816 (mma.sync, which a Hopper GPU runs
// at about two thirds of the rate of its wgmma).
#include "attention/entry.cuh"
#include "attention/prefill.cuh"

extern "C" __global__ void __launch_bounds__(128, 4) attention_prefill_d16_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 16>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 4) attention_prefill_d32_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 32>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 3) attention_prefill_d64_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 64>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d128_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 128>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d256_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 256>(ATTENTION_OPERANDS(bf16), *num_items); }
