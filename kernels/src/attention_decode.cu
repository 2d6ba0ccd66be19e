// Paged attention of sequences with few query tokens; see attention/decode.cuh for how, attention/plan.rs for what the
// work items are.
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
