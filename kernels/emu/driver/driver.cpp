#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace driver {
namespace {

// "4096", "512M" or "3G".
size_t bytes_from(const char* text, size_t otherwise) {
    if (!text || !*text) return otherwise;
    char* unit = nullptr;
    const double number = std::strtod(text, &unit);
    const double scale = *unit == 'K' ? 1 << 10 : *unit == 'M' ? 1 << 20 : *unit == 'G' ? 1 << 30 : 1;
    return static_cast<size_t>(number * scale);
}

uint64_t number_from(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text && *text ? std::strtoull(text, nullptr, 10) : otherwise;
}

}  // namespace

void say(const std::string& text) { std::fprintf(stderr, "emulated CUDA driver: %s\n", text.c_str()); }

// Never destroyed: other libraries' destructors still call in while the process ends.
State& State::get() {
    static State* state = new State();
    return *state;
}

void Trigger::set(const char* text) {
    const char* colon = text ? std::strchr(text, ':') : nullptr;
    if (!colon) return;
    kernel.assign(text, colon);
    left = std::strtoull(colon + 1, nullptr, 10);
}

bool Trigger::pulled_by(const std::string& name) { return left > 0 && name == kernel && --left == 0; }

CUresult State::start() {
    if (device) return SUCCESS;
    memory_limit = bytes_from(std::getenv("PLIMSOLL_EMU_MEMORY"), size_t(4) << 30);
    deferred = number_from("PLIMSOLL_EMU_ASYNC", 0) != 0;
    fault.set(std::getenv("PLIMSOLL_EMU_FAULT"));
    refusal.set(std::getenv("PLIMSOLL_EMU_REFUSE"));
    const uint32_t races = number_from("PLIMSOLL_EMU_CHECKS", 1) != 0;
    device = emu_device_new(number_from("PLIMSOLL_EMU_SEED", 0), memory_limit, races);
    return SUCCESS;
}

Stream* State::stream(void* handle) {
    const uintptr_t number = reinterpret_cast<uintptr_t>(handle);
    if (number <= 1) return &legacy;
    if (number == 2) return &per_thread;
    return static_cast<Stream*>(handle);
}

void State::for_each_stream(const std::function<void(Stream&)>& visit) {
    visit(legacy);
    visit(per_thread);
    for (const auto& stream : streams) visit(*stream);
}

CUresult State::run(const Work& work) {
    if (failure) return failure;
    const CUresult result = work();
    if (result) failure = result;
    return result;
}

CUresult State::enqueue(Stream& on, Work work) {
    if (on.capture) {
        if (!on.capture->valid) return CAPTURE_INVALIDATED;
        on.capture->graph->nodes.push_back(std::move(work));
        return SUCCESS;
    }
    if (failure) return failure;
    if (!deferred) return run(work);
    if (&on == &legacy) {
        // The legacy stream waits for all blocking streams.
        for_each_stream([&](Stream& other) {
            if (!(other.flags & 1)) drain(other);
        });
    }
    on.pending.push_back(std::move(work));
    return SUCCESS;
}

CUresult State::drain_until(Stream& on, const std::function<bool()>& done) {
    while (!on.pending.empty() && !done()) {
        const Work work = std::move(on.pending.front());
        on.pending.pop_front();
        run(work);
    }
    return failure;
}

CUresult State::drain(Stream& on) {
    return drain_until(on, [] { return false; });
}

CUresult State::drain_all() {
    for_each_stream([&](Stream& on) { drain(on); });
    return failure;
}

CUresult State::invalidate(Capture& capture, const char* call, CUresult error) {
    say(std::string(call) + " is not permitted while a stream is being captured; the capture is invalid now");
    capture.valid = false;
    return error;
}

CUresult State::forbid_in_capture(const char* call) {
    CUresult result = SUCCESS;
    for_each_stream([&](Stream& on) {
        if (!on.capture || on.capture->mode == RELAXED) return;
        if (on.capture->mode == THREAD_LOCAL && on.capture->thread != std::this_thread::get_id()) return;
        result = invalidate(*on.capture, call, CAPTURE_UNSUPPORTED);
    });
    return result;
}

CUresult State::forbid_in_capture_of(Stream& on, const char* call) {
    return on.capture ? invalidate(*on.capture, call, CAPTURE_UNSUPPORTED) : SUCCESS;
}

CUresult State::check_range(const char* what, CUdeviceptr at, size_t bytes) {
    if (emu_check_range(device, at, bytes) == 0) return SUCCESS;
    say(std::string(what) + ": " + emu_error(device));
    return INVALID_VALUE;
}

bool State::is_pinned(const void* at, size_t bytes) const {
    const char* address = static_cast<const char*>(at);
    auto after = pinned.upper_bound(address);
    if (after == pinned.begin()) return false;
    const auto& [base, size] = *std::prev(after);
    return static_cast<size_t>(address - base) <= size && bytes <= size - static_cast<size_t>(address - base);
}

Graph* State::owner_of(CUdeviceptr at) {
    for (Graph* graph : graphs) {
        if (graph->memory.count(at)) return graph;
    }
    return nullptr;
}

Graph::~Graph() {
    State& state = State::get();
    state.graphs.erase(this);
    for (CUdeviceptr at : memory) emu_release(state.device, at);
}

}  // namespace driver

using driver::Lock;
using driver::State;

EXPORT CUresult plimsoll_emu_enqueue(void* stream, StreamWork run, const void* operands, size_t bytes) {
    State& state = State::get();
    Lock lock(state.guard);
    const auto* first = static_cast<const unsigned char*>(operands);
    auto copy = std::make_shared<std::vector<unsigned char>>(first, first + bytes);
    return state.enqueue(*state.stream(stream), [run, copy] { return run(copy->data()); });
}

EXPORT CUresult plimsoll_emu_check(const char* what, CUdeviceptr at, size_t bytes) {
    State& state = State::get();
    Lock lock(state.guard);
    return state.check_range(what, at, bytes);
}
