// attention_prefill.cu over a cache of fp8 e4m3. Every warp widens the keys and values that it multiplies, which is
// about as many instructions again as all others.
//
// Compiled for sm_90a, registers and blocks a multiprocessor: D = 128 238, 2; D = 64 158, 3; D = 256 212, 2. No spills,
// no stack. Share of the matrix ceiling: not measured yet.
#include "attention/entry.cuh"
#include "attention/prefill.cuh"

extern "C" __global__ void __launch_bounds__(128, 3) attention_prefill_d64_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::prefill<fp8_e4m3, 64>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d128_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::prefill<fp8_e4m3, 128>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
extern "C" __global__ void __launch_bounds__(128, 2) attention_prefill_d256_fp8(ATTENTION_PARAMETERS(fp8_e4m3)) { attention::prefill<fp8_e4m3, 256>(ATTENTION_OPERANDS(fp8_e4m3), *num_items); }
