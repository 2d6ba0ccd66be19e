#include "launch.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "access.h"

namespace emu {
namespace {

// As much as Hopper gives a block.
constexpr unsigned MOST_SHARED = 227 << 10;
constexpr uint64_t MOST_SPINS = 1'000'000;

std::string coordinates(const Index& at) {
    return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
}

Index index_in(const Index& size, uint64_t linear) {
    const uint64_t row = linear / size.x;
    return {unsigned(linear % size.x), unsigned(row % size.y), unsigned(row / size.y)};
}

}  // namespace

Launch*& current_launch() {
    static thread_local Launch* launch = nullptr;
    return launch;
}

Launch::Launch(Memory& device_memory, Clock& clock, const Request& wanted)
    : memory(device_memory),
      races(clock, size_t(wanted.block.x) * wanted.block.y * wanted.block.z),
      request(wanted),
      random(wanted.seed) {}

bool Launch::run() {
    const uint64_t count = uint64_t(request.block.x) * request.block.y * request.block.z;
    const uint64_t blocks = uint64_t(request.grid.x) * request.grid.y * request.grid.z;
    const std::string asked = "a launch of " + coordinates(request.grid) + " blocks of " +
                              coordinates(request.block) + " threads, " + std::to_string(request.shared_bytes) +
                              " bytes of dynamic shared memory: ";
    if (count == 0 || count > MOST_THREADS) error = asked + "a block has 1 to 1024 threads";
    if (request.entry->most_threads && count > request.entry->most_threads) {
        error = asked + "__launch_bounds__ promised at most " + std::to_string(request.entry->most_threads);
    }
    if (blocks == 0 || request.grid.x > 0x7fffffff || request.grid.y > 65535 || request.grid.z > 65535) {
        error = asked + "a grid has 1 to 2^31-1 blocks in x, 1 to 65535 in y and z";
    }
    if (request.shared_bytes > MOST_SHARED) error = asked + "a block has at most 227 KiB";
    if (!error.empty()) return false;

    threads.resize(count);
    live_.resize((count + 31) / 32);
    waiting_.resize(live_.size());
    dynamic_storage_.resize(request.shared_bytes + 128);
    dynamic = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(dynamic_storage_.data()) + 127) & ~uintptr_t(127));
    Launch* outer = current_launch();
    current_launch() = this;
    access_begins(*this);
    std::vector<uint32_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random.below(uint32_t(i))]);
    for (uint32_t number : order) {
        run_block(number);
        if (!error.empty()) break;
    }
    access_ends();
    current_launch() = outer;
    return error.empty();
}

void Launch::run_block(uint64_t number) {
    if (races.clock_is_late()) {
        memory.forget_accesses();
        forget_shared_accesses();
        races.restart_clock();
    }
    races.block_begins();
    block_index = index_in(request.grid, number);
    std::memset(dynamic, 0xFF, request.shared_bytes);
    barrier = BlockBarrier();
    named.fill(NamedBarrier());
    start_threads();
    run_next_or(main_);
    running = nullptr;
    if (error.empty() && live > 0) report_deadlock();
}

void Launch::start_threads() {
    live = unsigned(threads.size());
    std::fill(live_.begin(), live_.end(), 0);
    std::fill(waiting_.begin(), waiting_.end(), 0);
    ready_.clear();
    for (unsigned i = 0; i < threads.size(); i++) {
        Thread& thread = threads[i];
        thread.stack = stack_of(i);
        prepare(thread.context, thread.stack, STACK_BYTES, thread_main);
        thread.number = i;
        thread.index = index_in(request.block, i);
        thread.done = false;
        thread.waits_in = nullptr;
        thread.operation = nullptr;
        thread.copies.clear();
        thread.group = 0;
        thread.fenced = 0;
        live_[i / 32] |= 1u << (i % 32);
        ready_.push_back(i);
    }
}

void Launch::thread_main() {
    Launch& launch = here();
    launch.request.entry->call();
    launch.finished(*launch.running);
    __builtin_unreachable();
}

// Exited threads no longer count: neither for barriers nor for their warp.
void Launch::finished(Thread& thread) {
    thread.done = true;
    made_progress();
    live--;
    live_[thread.warp()] &= ~(1u << thread.lane());
    if (live > 0) {
        block_thread_left(*this);
        warp_thread_left(*this, thread.warp());
    }
    Context nowhere;
    run_next_or(nowhere);
}

// Any thread that can run does so next, which one is drawn; without any, `run_block` goes on.
void Launch::run_next_or(Context& self) {
    if (ready_.empty()) {
        running = nullptr;
        switch_context(self, main_);
        return;
    }
    const size_t drawn = random.below(uint32_t(ready_.size()));
    const unsigned next = ready_[drawn];
    ready_[drawn] = ready_.back();
    ready_.pop_back();
    Thread* before = running;
    running = &threads[next];
    if (before == running && !before->done && &self == &before->context) return;
    switch_context(self, running->context);
}

void Launch::wait(const char* in, const void* at) {
    Thread& me = *running;
    me.waits_in = in;
    me.waits_at = at;
    run_next_or(me.context);
    me.waits_in = nullptr;
}

void Launch::wake(Thread& thread) {
    made_progress();
    ready_.push_back(thread.number);
}

void Launch::maybe_yield() {
    if (ready_.empty() || random.below(4) != 0) return;
    ready_.push_back(running->number);
    run_next_or(running->context);
}

void Launch::nothing_changed(const void* at) {
    if (++spins_ > MOST_SPINS) fault("spins without end on a value that nobody changes", at);
}

// The launch ends here: the stacks of its threads are simply not switched to again.
void Launch::fault(const std::string& problem, const void* at) {
    error = "block " + coordinates(block_index) + ", thread " + coordinates(running->index) + ": " + problem;
    if (at) error += ", at " + source_line(at);
    Context nowhere;
    switch_context(nowhere, main_);
    __builtin_unreachable();
}

void Launch::report_deadlock() {
    error = "block " + coordinates(block_index) + ": deadlock, all " + std::to_string(live) + " live threads wait:";
    std::map<std::string, std::vector<unsigned>> places;
    for (const Thread& thread : threads) {
        if (thread.done) continue;
        places[std::string(thread.waits_in) + " at " + source_line(thread.waits_at)].push_back(thread.number);
    }
    for (const auto& [place, numbers] : places) {
        error += "\n  " + std::to_string(numbers.size()) + " in " + place + ": threads";
        for (size_t i = 0; i < numbers.size() && i < 8; i++) error += " " + std::to_string(numbers[i]);
        if (numbers.size() > 8) error += " .. " + std::to_string(numbers.back());
    }
    const size_t exited = threads.size() - live;
    if (exited) error += "\n  " + std::to_string(exited) + " have ended";
}

// ---- What kernels see

Index thread_index() { return here().running->index; }
Index block_index() { return here().block_index; }
Index block_size() { return here().request.block; }
Index grid_size() { return here().request.grid; }
void* dynamic_shared() { return here().dynamic; }

void read_argument(size_t index, void* to, size_t bytes) { std::memcpy(to, here().request.arguments[index], bytes); }

void trap() { here().fault("__trap()", __builtin_return_address(0)); }

void failed_assertion(const char* condition, const char* message, const char* file, int line) {
    here().fault(std::string(message) + " (" + condition + "), at " + short_name(file) + ":" + std::to_string(line),
                 nullptr);
}

}  // namespace emu
