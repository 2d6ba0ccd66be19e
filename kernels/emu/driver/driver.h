// The state of the stand-in driver: one device, its streams, and what was queued on them. One lock is around all of it.
//
// Work runs when it is queued; with PLIMSOLL_EMU_ASYNC=1, when something waits for it, and no sooner.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "../runtime/device.h"
#include "api.h"

namespace driver {

using Work = std::function<CUresult()>;
using Time = std::chrono::steady_clock::time_point;

struct Graph {
    std::vector<Work> nodes;
    // Memory allocated while it was captured: it lives as long as the graph and those made of it.
    std::set<CUdeviceptr> memory;
    ~Graph();
};

struct GraphExec {
    std::shared_ptr<Graph> graph;
};

enum CaptureMode { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };

struct Capture {
    std::shared_ptr<Graph> graph = std::make_shared<Graph>();
    CaptureMode mode = GLOBAL;
    std::thread::id thread;
    bool valid = true;
};

struct Stream {
    unsigned flags = 0;
    int priority = 0;
    std::deque<Work> pending;
    std::unique_ptr<Capture> capture;
};

struct Event {
    bool recorded = false;  // ever
    bool captured = false;  // last by a stream that was being captured
    unsigned pending = 0;   // records that have not run
    Stream* stream = nullptr;
    Time time;
};

struct Function {
    std::string name;
    int most_dynamic_shared = 48 << 10;
};

struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
};

// Something that goes wrong once a kernel has run so often: KERNEL:RUNS.
class Trigger {
public:
    void set(const char* text);
    // Counts a run of a kernel; whether it was the one.
    bool pulled_by(const std::string& kernel);

private:
    std::string kernel;
    uint64_t left = 0;
};

class State {
public:
    static State& get();

    std::recursive_mutex guard;
    EmuDevice* device = nullptr;  // once cuInit was called
    size_t memory_limit = 0;
    bool deferred = false;
    // The first failure; as with a real device, everything after it fails too.
    CUresult failure = SUCCESS;
    // The kernel's run is an illegal access; the next large allocation after it is refused.
    Trigger fault, refusal;
    bool refuses = false;
    std::set<std::unique_ptr<Stream>> streams;
    Stream legacy, per_thread;
    std::map<const char*, size_t> pinned;

    CUresult start();
    Stream* stream(void* handle);
    // Runs, queues or records.
    CUresult enqueue(Stream& stream, Work work);
    CUresult drain(Stream& stream);
    CUresult drain_all();
    // Runs the stream's work as far as it takes for `done`.
    CUresult drain_until(Stream& stream, const std::function<bool()>& done);
    // For calls that a capture under way forbids: invalidates it, says so, and gives the error.
    CUresult forbid_in_capture(const char* call);
    CUresult forbid_in_capture_of(Stream& stream, const char* call);
    CUresult invalidate(Capture& capture, const char* call, CUresult error);
    CUresult check_range(const char* what, CUdeviceptr at, size_t bytes);
    bool is_pinned(const void* at, size_t bytes) const;
    // Memory that some graph owns.
    Graph* owner_of(CUdeviceptr at);
    std::set<Graph*> graphs;

private:
    CUresult run(const Work& work);
    void for_each_stream(const std::function<void(Stream&)>& visit);
};

using Lock = std::lock_guard<std::recursive_mutex>;

void say(const std::string& text);

}  // namespace driver
