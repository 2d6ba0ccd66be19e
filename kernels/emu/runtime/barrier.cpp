// Barriers of a block.
#include "launch.h"

namespace emu {

const char* const BLOCK_BARRIER = "__syncthreads";

namespace {

void open_barrier(Launch& launch) {
    BlockBarrier& barrier = launch.barrier;
    barrier.result_truths = barrier.truths;
    barrier.result_arrived = barrier.arrived;
    barrier.arrived = barrier.truths = 0;
    launch.races.block_synchronized();
    for (Thread& thread : launch.threads) {
        if (!thread.done && thread.waits_in == BLOCK_BARRIER) {
            thread.waits_in = nullptr;
            launch.wake(thread);
        }
    }
}

int result(const BlockBarrier& barrier, Reduce how) {
    switch (how) {
        case Reduce::any: return barrier.result_truths > 0;
        case Reduce::all: return barrier.result_truths == barrier.result_arrived;
        case Reduce::count: return int(barrier.result_truths);
        default: return 0;
    }
}

}  // namespace

int block_barrier(Reduce how, bool value, const char* file, int line) {
    Launch& launch = here();
    BlockBarrier& barrier = launch.barrier;
    const void* at = __builtin_return_address(0);
    if (barrier.arrived == 0) {
        barrier.how = how;
        barrier.file = file;
        barrier.line = line;
    } else if (barrier.line != line || barrier.how != how || std::string(barrier.file) != file) {
        launch.fault("waits in __syncthreads at " + short_name(file) + ":" + std::to_string(line) +
                         " while other threads of the block wait in the one at " + short_name(barrier.file) + ":" +
                         std::to_string(barrier.line),
                     nullptr);
    }
    barrier.arrived++;
    barrier.truths += value;
    if (barrier.arrived == launch.live) {
        open_barrier(launch);
    } else {
        launch.wait(BLOCK_BARRIER, at);
    }
    return result(barrier, how);
}

void block_thread_left(Launch& launch) {
    if (launch.barrier.arrived > 0 && launch.barrier.arrived == launch.live) open_barrier(launch);
}

void named_barrier(int id, int threads) {
    Launch& launch = here();
    const void* at = __builtin_return_address(0);
    if (id < 1 || id > 15 || threads <= 0 || threads % 32 != 0) {
        launch.fault("named_barrier(" + std::to_string(id) + ", " + std::to_string(threads) +
                         "): ids are 1 to 15, threads a multiple of 32",
                     at);
    }
    NamedBarrier& barrier = launch.named[size_t(id)];
    if (barrier.waiting.empty()) barrier.expected = unsigned(threads);
    if (barrier.expected != unsigned(threads)) {
        launch.fault("named_barrier " + std::to_string(id) + " for " + std::to_string(threads) +
                         " threads, while others wait in it for " + std::to_string(barrier.expected),
                     at);
    }
    barrier.waiting.push_back(launch.running->number);
    if (barrier.waiting.size() < barrier.expected) {
        launch.wait("named_barrier", at);
        return;
    }
    launch.races.warps_synchronized(barrier.waiting);
    for (unsigned number : barrier.waiting) {
        if (number != launch.running->number) launch.wake(launch.threads[number]);
    }
    barrier.waiting.clear();
}

void fence() {
    Launch& launch = here();
    launch.running->fenced = launch.races.now();
}

}  // namespace emu
