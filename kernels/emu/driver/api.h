// What the parts of the stand-in driver share: the driver API's plain types, its error codes, and how the other
// libraries queue work on a stream. The names and numbers are those of the CUDA driver API.
#pragma once

#include <cstddef>
#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

using CUresult = int;
using CUdevice = int;
using CUdeviceptr = unsigned long long;

constexpr CUresult SUCCESS = 0;
constexpr CUresult INVALID_VALUE = 1;
constexpr CUresult OUT_OF_MEMORY = 2;
constexpr CUresult NOT_INITIALIZED = 3;
constexpr CUresult INVALID_DEVICE = 101;
constexpr CUresult INVALID_CONTEXT = 201;
constexpr CUresult INVALID_HANDLE = 400;
constexpr CUresult NOT_FOUND = 500;
constexpr CUresult NOT_READY = 600;
constexpr CUresult ILLEGAL_ADDRESS = 700;
constexpr CUresult LAUNCH_FAILED = 719;
constexpr CUresult NOT_SUPPORTED = 801;
constexpr CUresult CAPTURE_UNSUPPORTED = 900;
constexpr CUresult CAPTURE_INVALIDATED = 901;
constexpr CUresult CAPTURE_UNMATCHED = 903;
constexpr CUresult CAPTURE_ISOLATION = 905;
constexpr CUresult CAPTURED_EVENT = 907;

// Queues `run` with a copy of `bytes` bytes of operands, or records it while the stream is captured. `run` gives a
// CUresult and may access only device memory. `stream` is a CUstream.
using StreamWork = CUresult (*)(const void* operands);
EXPORT CUresult plimsoll_emu_enqueue(void* stream, StreamWork run, const void* operands, size_t bytes);
// SUCCESS if these bytes of device memory are one allocation's; else it says on stderr what `what` would overrun.
EXPORT CUresult plimsoll_emu_check(const char* what, CUdeviceptr at, size_t bytes);
