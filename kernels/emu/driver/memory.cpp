// Allocations, copies and fills, pinned memory, pools.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "driver.h"

using driver::Capture;
using driver::Lock;
using driver::say;
using driver::State;
using driver::Stream;
using driver::Work;

namespace {

// Larger graph allocations keep what they hold from one replay to the next.
constexpr size_t MOST_POISONED = 64 << 20;
constexpr size_t WORTH_HANDING_BACK = 1 << 20;

CUresult allocate(State& state, CUdeviceptr* at, size_t bytes) {
    constexpr size_t LARGE = 4096;
    if (bytes == 0) return INVALID_VALUE;
    if (state.refuses && bytes >= LARGE) {
        state.refuses = false;
        say("an allocation is refused, as PLIMSOLL_EMU_REFUSE asks");
        return OUT_OF_MEMORY;
    }
    *at = emu_alloc(state.device, bytes);
    if (!*at && state.deferred) {
        // What is queued to be freed may make room.
        if (const CUresult error = state.drain_all()) return error;
        *at = emu_alloc(state.device, bytes);
    }
    return *at ? SUCCESS : OUT_OF_MEMORY;
}

CUresult release(State& state, CUdeviceptr at) {
    if (emu_release(state.device, at) == 0) return SUCCESS;
    say(std::string("free: ") + emu_error(state.device));
    return INVALID_VALUE;
}

// A graph's own memory: at each replay it holds nothing until the graph writes it.
CUresult allocate_in_graph(State& state, Capture& capture, CUdeviceptr* at, size_t bytes) {
    if (const CUresult error = allocate(state, at, bytes)) return error;
    capture.graph->memory.insert(*at);
    const CUdeviceptr to = *at;
    if (bytes <= MOST_POISONED) {
        capture.graph->nodes.push_back([to, bytes] {
            std::memset(reinterpret_cast<void*>(to), 0xFF, bytes);
            return SUCCESS;
        });
    }
    return SUCCESS;
}

CUresult free_in_capture(State& state, Stream& stream, CUdeviceptr at) {
    if (stream.capture->graph->memory.count(at)) return SUCCESS;
    say("cuMemFreeAsync of memory that was allocated outside the capture, in a stream that is being captured");
    return state.invalidate(*stream.capture, "cuMemFreeAsync", INVALID_VALUE);
}

CUresult copy(const void* to, const void* from, size_t bytes) {
    std::memmove(const_cast<void*>(to), from, bytes);
    return SUCCESS;
}

const void* host(CUdeviceptr at) { return reinterpret_cast<const void*>(at); }

template <typename T> void fill_now(CUdeviceptr at, T value, size_t count) {
    T* first = reinterpret_cast<T*>(at);
    for (size_t i = 0; i < count; i++) first[i] = value;
}

// Zeroing a KV cache must not take its memory before it is used: whole pages are handed back, to be zeros anew.
template <> void fill_now(CUdeviceptr at, unsigned char value, size_t count) {
    constexpr uintptr_t PAGE = 4096;
    const uintptr_t first = (at + PAGE - 1) & ~(PAGE - 1), last = (at + count) & ~(PAGE - 1);
    if (value != 0 || first >= last || last - first < WORTH_HANDING_BACK) {
        std::memset(reinterpret_cast<void*>(at), value, count);
        return;
    }
    std::memset(reinterpret_cast<void*>(at), 0, first - at);
    std::memset(reinterpret_cast<void*>(last), 0, at + count - last);
    if (madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) != 0) {
        std::memset(reinterpret_cast<void*>(first), 0, last - first);
    }
}

template <typename T> CUresult fill(const char* call, CUdeviceptr at, T value, size_t count, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.check_range(call, at, count * sizeof(T))) return error;
    return state.enqueue(*state.stream(handle), [at, value, count] {
        fill_now<T>(at, value, count);
        return SUCCESS;
    });
}

// The host waits for the copy, and before it for all that is queued.
CUresult copy_now(const char* call, const void* to, const void* from, size_t bytes, CUdeviceptr device_side) {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.forbid_in_capture(call)) return error;
    if (const CUresult error = state.check_range(call, device_side, bytes)) return error;
    if (const CUresult error = state.drain_all()) return error;
    return copy(to, from, bytes);
}

}  // namespace

EXPORT CUresult cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    State& state = State::get();
    Lock lock(state.guard);
    *total = state.memory_limit;
    *free_bytes = state.memory_limit - emu_memory_used(state.device);
    return SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* at, size_t bytes) {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.forbid_in_capture("cuMemAlloc")) return error;
    if (state.failure) return state.failure;
    return allocate(state, at, bytes);
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr at) {
    State& state = State::get();
    Lock lock(state.guard);
    if (at == 0) return SUCCESS;
    if (const CUresult error = state.forbid_in_capture("cuMemFree")) return error;
    state.drain_all();
    return state.owner_of(at) ? SUCCESS : release(state, at);
}

EXPORT CUresult cuMemAllocAsync(CUdeviceptr* at, size_t bytes, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (state.failure) return state.failure;
    if (!stream.capture) return allocate(state, at, bytes);
    if (!stream.capture->valid) return CAPTURE_INVALIDATED;
    return allocate_in_graph(state, *stream.capture, at, bytes);
}

EXPORT CUresult cuMemAllocFromPoolAsync(CUdeviceptr* at, size_t bytes, void*, void* stream) {
    return cuMemAllocAsync(at, bytes, stream);
}

EXPORT CUresult cuMemFreeAsync(CUdeviceptr at, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (stream.capture) return free_in_capture(state, stream, at);
    if (state.owner_of(at)) return SUCCESS;  // goes with its graph
    if (const CUresult error = state.check_range("cuMemFreeAsync", at, 1)) return error;
    return state.enqueue(stream, [&state, at] { return release(state, at); });
}

EXPORT CUresult cuMemHostAlloc(void** at, size_t bytes, unsigned) {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.forbid_in_capture("cuMemHostAlloc")) return error;
    *at = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (!*at) return OUT_OF_MEMORY;
    std::memset(*at, 0xFF, bytes);
    state.pinned[static_cast<const char*>(*at)] = bytes;
    return SUCCESS;
}

EXPORT CUresult cuMemFreeHost(void* at) {
    State& state = State::get();
    Lock lock(state.guard);
    state.drain_all();
    if (!state.pinned.erase(static_cast<const char*>(at))) return INVALID_VALUE;
    std::free(at);
    return SUCCESS;
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
    return copy_now("cuMemcpyHtoD", host(to), from, bytes, to);
}

EXPORT CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
    return copy_now("cuMemcpyDtoH", to, host(from), bytes, from);
}

EXPORT CUresult cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes) {
    if (const CUresult error = plimsoll_emu_check("cuMemcpyDtoD", to, bytes)) return error;
    return copy_now("cuMemcpyDtoD", host(to), host(from), bytes, from);
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t bytes, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (const CUresult error = state.check_range("cuMemcpyHtoDAsync", to, bytes)) return error;
    if (state.is_pinned(from, bytes)) {
        return state.enqueue(stream, [=] { return copy(host(to), from, bytes); });
    }
    if (const CUresult error = state.forbid_in_capture_of(stream, "a copy from pageable memory")) return error;
    // The driver takes a copy of pageable memory before it returns.
    const char* first = static_cast<const char*>(from);
    auto staged = std::make_shared<std::vector<char>>(first, first + bytes);
    return state.enqueue(stream, [=] { return copy(host(to), staged->data(), bytes); });
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t bytes, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (const CUresult error = state.check_range("cuMemcpyDtoHAsync", from, bytes)) return error;
    const Work work = [=] { return copy(to, host(from), bytes); };
    if (state.is_pinned(to, bytes)) return state.enqueue(stream, work);
    if (const CUresult error = state.forbid_in_capture_of(stream, "a copy to pageable memory")) return error;
    // To pageable memory the driver copies before it returns.
    if (const CUresult error = state.enqueue(stream, work)) return error;
    return state.drain(stream);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.check_range("cuMemcpyDtoDAsync", to, bytes)) return error;
    if (const CUresult error = state.check_range("cuMemcpyDtoDAsync", from, bytes)) return error;
    return state.enqueue(*state.stream(handle), [=] { return copy(host(to), host(from), bytes); });
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t count, void* stream) {
    return fill("cuMemsetD8Async", at, value, count, stream);
}

EXPORT CUresult cuMemsetD16Async(CUdeviceptr at, unsigned short value, size_t count, void* stream) {
    return fill("cuMemsetD16Async", at, value, count, stream);
}

EXPORT CUresult cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t count, void* stream) {
    return fill("cuMemsetD32Async", at, value, count, stream);
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t count) {
    State& state = State::get();
    Lock lock(state.guard);
    if (const CUresult error = state.forbid_in_capture("cuMemsetD8")) return error;
    if (const CUresult error = fill("cuMemsetD8", at, value, count, nullptr)) return error;
    return state.drain_all();
}

EXPORT CUresult cuDeviceGetDefaultMemPool(void** pool, CUdevice) {
    *pool = reinterpret_cast<void*>(0x2000);
    return SUCCESS;
}

EXPORT CUresult cuDeviceGetMemPool(void** pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
EXPORT CUresult cuDeviceSetMemPool(CUdevice, void*) { return SUCCESS; }
EXPORT CUresult cuMemPoolSetAttribute(void*, int, void*) { return SUCCESS; }
EXPORT CUresult cuMemPoolTrimTo(void*, size_t) { return SUCCESS; }

EXPORT CUresult cuMemPoolGetAttribute(void*, int which, void* value) {
    State& state = State::get();
    Lock lock(state.guard);
    // 1 to 3 are switches, from 4 on bytes: the threshold, then reserved and used memory.
    if (which <= 3) {
        *static_cast<int*>(value) = 1;
    } else {
        *static_cast<uint64_t*>(value) = which == 4 ? UINT64_MAX : emu_memory_used(state.device);
    }
    return SUCCESS;
}
