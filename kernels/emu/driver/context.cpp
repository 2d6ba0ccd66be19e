// Starting up, the one device and its contexts, errors' names.
#include <cstring>

#include "driver.h"

using driver::Lock;
using driver::State;

namespace {

constexpr uintptr_t PRIMARY = 0x1000;
thread_local void* current_context = nullptr;

// What an H200 says of itself, but for the number of multiprocessors: blocks run one after the other here.
int attribute(int which) {
    switch (which) {
        case 1: return 1024;                 // threads a block
        case 2: case 3: return 1024;         // block size in x, y
        case 4: return 64;                   // in z
        case 5: return 2147483647;           // grid size in x
        case 6: case 7: return 65535;        // in y, z
        case 8: return 48 << 10;             // shared memory a block
        case 9: return 64 << 10;             // constant memory
        case 10: return 32;                  // threads a warp
        case 11: return 2147483647;          // pitch
        case 12: case 82: return 65536;      // registers a block, a multiprocessor
        case 13: return 1980000;             // kHz
        case 16: return 4;                   // multiprocessors
        case 31: return 1;                   // concurrent kernels
        case 36: return 3201000;             // memory clock, kHz
        case 37: return 6144;                // memory bus, bits
        case 38: return 50 << 20;            // L2 cache
        case 39: return 2048;                // threads a multiprocessor
        case 40: return 3;                   // copy engines
        case 41: return 1;                   // unified addresses
        case 75: return 9;                   // compute capability
        case 76: return 0;
        case 78: return 1;                   // stream priorities
        case 81: return 228 << 10;           // shared memory a multiprocessor
        case 95: return 1;                   // cooperative launch
        case 97: return 227 << 10;           // shared memory a block, on demand
        case 106: return 32;                 // blocks a multiprocessor
        case 111: return 1 << 10;            // shared memory the system keeps
        case 115: return 1;                  // memory pools
        default: return 0;
    }
}

struct ErrorText {
    CUresult code;
    const char* name;
    const char* text;
};

const ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "capture was not initiated in this stream"},
    {CAPTURE_ISOLATION, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
};

const ErrorText* find_error(CUresult code) {
    for (const ErrorText& error : ERRORS) {
        if (error.code == code) return &error;
    }
    return nullptr;
}

}  // namespace

EXPORT CUresult cuInit(unsigned) {
    Lock lock(State::get().guard);
    return State::get().start();
}

EXPORT CUresult cuDriverGetVersion(int* version) {
    *version = 13000;
    return SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult code, const char** name) {
    const ErrorText* found = find_error(code);
    *name = found ? found->name : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

EXPORT CUresult cuGetErrorString(CUresult code, const char** text) {
    const ErrorText* found = find_error(code);
    *text = found ? found->text : nullptr;
    return found ? SUCCESS : INVALID_VALUE;
}

EXPORT CUresult cuDeviceGetCount(int* count) {
    *count = 1;
    return State::get().device ? SUCCESS : NOT_INITIALIZED;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    if (!State::get().device) return NOT_INITIALIZED;
    *device = 0;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

EXPORT CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    if (length < 1) return INVALID_VALUE;
    std::strncpy(name, "Emulated H200", static_cast<size_t>(length));
    name[length - 1] = 0;
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid_v2(char* uuid, CUdevice) {
    std::memcpy(uuid, "plimsoll-emulate", 16);
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetUuid(char* uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }

EXPORT CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    *bytes = State::get().memory_limit;
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, int which, CUdevice) {
    *value = attribute(which);
    return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(void** context, CUdevice) {
    *context = reinterpret_cast<void*>(PRIMARY);
    return SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return SUCCESS; }
EXPORT CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice, unsigned) { return SUCCESS; }

EXPORT CUresult cuCtxCreate_v4(void** context, void*, unsigned, CUdevice device) {
    current_context = reinterpret_cast<void*>(PRIMARY);
    return cuDevicePrimaryCtxRetain(context, device);
}

EXPORT CUresult cuCtxDestroy_v2(void*) { return SUCCESS; }

EXPORT CUresult cuCtxSetCurrent(void* context) {
    current_context = context;
    return SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(void** context) {
    *context = current_context;
    return SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice* device) {
    *device = 0;
    return current_context ? SUCCESS : INVALID_CONTEXT;
}

EXPORT CUresult cuCtxSetFlags(unsigned) { return SUCCESS; }
EXPORT CUresult cuCtxSetLimit(int, size_t) { return SUCCESS; }
EXPORT CUresult cuCtxSetCacheConfig(int) { return SUCCESS; }

EXPORT CUresult cuCtxGetLimit(size_t* value, int) {
    *value = 1024;
    return SUCCESS;
}

EXPORT CUresult cuCtxGetCacheConfig(int* config) {
    *config = 0;
    return SUCCESS;
}

EXPORT CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return SUCCESS;
}

EXPORT CUresult cuCtxSynchronize() {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.forbid_in_capture("cuCtxSynchronize")) return error;
    return state.drain_all();
}

EXPORT CUresult cuProfilerStart() { return SUCCESS; }
EXPORT CUresult cuProfilerStop() { return SUCCESS; }
