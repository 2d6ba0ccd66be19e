#include "attention/entry.cuh"
#include "attention/prefill.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d64_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::prefill<fp8_e4m3, 64>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d128_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::prefill<fp8_e4m3, 128>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d256_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::prefill<fp8_e4m3, 256>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
