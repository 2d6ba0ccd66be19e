// One launch while it runs: the block at work, its threads and warps, and who runs next. All of it is one host thread's;
// blocks run one after the other, in an order that the seed sets, and so do the threads of a block between two waits.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <map>
#include <vector>

#include "calls.h"
#include "fiber.h"
#include "memory.h"
#include "races.h"
#include "registry.h"

namespace emu {

// SplitMix64.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}
    uint64_t bits() {
        uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
        return z ^ (z >> 31);
    }
    uint32_t below(uint32_t end) { return static_cast<uint32_t>(((bits() >> 32) * end) >> 32); }

private:
    uint64_t state_;
};

// A cp.async that was begun and has not landed.
struct AsyncCopy {
    void* to;
    const void* from;
    int bytes;
    bool valid;
    unsigned group;
};

class Launch;
struct Operation;

// The operands of the lanes that take part; null for the others.
using Lanes = std::array<void*, 32>;

struct Thread {
    Context context;
    char* stack;
    unsigned number;  // within the block
    Index index;
    bool done;
    // What it waits in, for the report of a deadlock; null while it can run.
    const char* waits_in;
    const void* waits_at;
    const Operation* operation;  // the last warp function it came to, with its mask and operands
    uint32_t mask;
    void* operands;
    std::vector<AsyncCopy> copies;
    unsigned group;       // of the copies that it begins next
    uint32_t fenced;      // when it last passed a fence in this block; 0 never

    unsigned lane() const { return number % 32; }
    unsigned warp() const { return number / 32; }
};

// A function that the lanes of a mask do together: the last to come completes it for all.
struct Operation {
    const char* name;
    bool orders_memory;
    void (*complete)(Launch& launch, const Lanes& lanes);
};

struct NamedBarrier {
    unsigned expected = 0;
    std::vector<unsigned> waiting;
};

struct BlockBarrier {
    unsigned arrived = 0;
    unsigned truths = 0;
    unsigned result_truths = 0;
    unsigned result_arrived = 0;
    Reduce how = Reduce::none;
    const char* file = nullptr;
    int line = 0;
};

struct Request {
    const Entry* entry;
    void* const* arguments;
    Index grid;
    Index block;
    unsigned shared_bytes;
    uint64_t seed;
    bool check_races;
};

class Launch {
public:
    Launch(Memory& memory, Clock& clock, const Request& request);
    // True when it ran to its end; else `error` says what went wrong.
    bool run();

    // What kernels call, on behalf of the running thread.
    void wait(const char* in, const void* at);
    void wake(Thread& thread);
    void maybe_yield();
    void made_progress() { spins_ = 0; }
    // A look at memory that others may change: too many in a row are a deadlock.
    void nothing_changed(const void* at);
    [[noreturn]] void fault(const std::string& problem, const void* at);
    uint32_t live_lanes(unsigned warp) const { return live_[warp]; }
    // Lanes that wait in a warp function.
    uint32_t& waiting_lanes(unsigned warp) { return waiting_[warp]; }

    Memory& memory;
    Races races;
    Request request;
    Random random;
    std::vector<Thread> threads;
    Thread* running = nullptr;
    Index block_index{};
    char* dynamic = nullptr;
    unsigned live = 0;
    BlockBarrier barrier;
    std::array<NamedBarrier, 16> named;
    std::string error;

private:
    void run_block(uint64_t number);
    void start_threads();
    void run_next_or(Context& back);
    void report_deadlock();
    static void thread_main();
    void finished(Thread& thread);

    std::vector<uint32_t> live_;  // lanes of each warp that have not ended
    std::vector<uint32_t> waiting_;
    std::vector<unsigned> ready_;
    std::vector<char> dynamic_storage_;
    Context main_;
    uint64_t spins_ = 0;
};

// What a thread waits in, told apart by address.
extern const char* const BLOCK_BARRIER;

// The launch that the calling host thread runs, or null.
Launch*& current_launch();

inline Launch& here() { return *current_launch(); }

// "file.cu:12" of an instruction if that can be found out, else its address.
std::string source_line(const void* at);

// A path from "kernels/" on, if it has that.
std::string short_name(const std::string& path);

// A thread has ended: what the others wait for may be complete now.
void block_thread_left(Launch& launch);
void warp_thread_left(Launch& launch, unsigned warp);

// Waits until all lanes of the mask have come to `operation`. `operands` are read and written by the one that completes it.
void together(const Operation& operation, uint32_t mask, void* operands, const void* at);

}  // namespace emu
