#include "attention/entry.cuh"
#include "attention/prefill.cuh"

extern "C" __global__ void __launch_bounds__(128) attention_prefill_d16_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 16>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128) attention_prefill_d32_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 32>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d64_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 64>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d128_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 128>(ATTENTION_OPERANDS(bf16), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d256_bf16(ATTENTION_PARAMETERS(bf16)) { attention::prefill<bf16, 256>(ATTENTION_OPERANDS(bf16), *num_items); }
