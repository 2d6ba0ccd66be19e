// Streams, events, capture and graphs.
#include "driver.h"

using driver::Capture;
using driver::CaptureMode;
using driver::Event;
using driver::Graph;
using driver::GraphExec;
using driver::Lock;
using driver::say;
using driver::State;
using driver::Stream;

EXPORT CUresult cuStreamCreateWithPriority(void** handle, unsigned flags, int priority) {
    State& state = State::get();
    Lock lock(state.guard);
    auto stream = std::make_unique<Stream>();
    stream->flags = flags;
    stream->priority = priority;
    *handle = stream.get();
    state.streams.insert(std::move(stream));
    return SUCCESS;
}

EXPORT CUresult cuStreamCreate(void** handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

EXPORT CUresult cuStreamDestroy_v2(void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream* stream = state.stream(handle);
    state.drain(*stream);
    for (auto it = state.streams.begin(); it != state.streams.end(); ++it) {
        if (it->get() != stream) continue;
        state.streams.erase(it);
        return SUCCESS;
    }
    return INVALID_HANDLE;
}

EXPORT CUresult cuStreamSynchronize(void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (const CUresult error = state.forbid_in_capture_of(stream, "cuStreamSynchronize")) return error;
    return &stream == &state.legacy ? state.drain_all() : state.drain(stream);
}

EXPORT CUresult cuStreamQuery(void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (const CUresult error = state.forbid_in_capture_of(stream, "cuStreamQuery")) return error;
    if (state.failure) return state.failure;
    return stream.pending.empty() ? SUCCESS : NOT_READY;
}

EXPORT CUresult cuStreamAttachMemAsync(void*, CUdeviceptr, size_t, unsigned) { return SUCCESS; }

EXPORT CUresult cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    State& state = State::get();
    Lock lock(state.guard);
    return state.enqueue(*state.stream(handle), [=] {
        function(data);
        return SUCCESS;
    });
}

EXPORT CUresult cuEventCreate(void** handle, unsigned) {
    *handle = new Event();
    return SUCCESS;
}

EXPORT CUresult cuEventDestroy_v2(void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Event* event = static_cast<Event*>(handle);
    if (event->pending) state.drain(*event->stream);
    delete event;
    return SUCCESS;
}

EXPORT CUresult cuEventRecord(void* handle, void* stream_handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Event* event = static_cast<Event*>(handle);
    Stream& stream = *state.stream(stream_handle);
    event->recorded = true;
    event->stream = &stream;
    event->captured = stream.capture != nullptr;
    if (event->captured) return stream.capture->valid ? SUCCESS : CAPTURE_INVALIDATED;
    event->pending++;
    return state.enqueue(stream, [event] {
        event->pending--;
        event->time = std::chrono::steady_clock::now();
        return SUCCESS;
    });
}

EXPORT CUresult cuEventQuery(void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    const Event& event = *static_cast<Event*>(handle);
    if (event.captured) return CAPTURED_EVENT;
    if (state.failure) return state.failure;
    return event.pending ? NOT_READY : SUCCESS;
}

EXPORT CUresult cuEventSynchronize(void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Event& event = *static_cast<Event*>(handle);
    if (event.captured) return CAPTURED_EVENT;
    if (event.pending) state.drain_until(*event.stream, [&] { return event.pending == 0; });
    return state.failure;
}

EXPORT CUresult cuEventElapsedTime_v2(float* milliseconds, void* from, void* to) {
    State& state = State::get();
    Lock lock(state.guard);
    const Event &start = *static_cast<Event*>(from), &end = *static_cast<Event*>(to);
    if (!start.recorded || !end.recorded) return INVALID_HANDLE;
    if (start.pending || end.pending) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end.time - start.time).count();
    return SUCCESS;
}

EXPORT CUresult cuEventElapsedTime(float* milliseconds, void* from, void* to) {
    return cuEventElapsedTime_v2(milliseconds, from, to);
}

EXPORT CUresult cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    Event* event = static_cast<Event*>(event_handle);
    if (stream.capture) {
        if (event->captured && event->stream == &stream) return SUCCESS;
        if (!event->recorded) return SUCCESS;
        return state.invalidate(*stream.capture, "waiting for an event from outside the capture", CAPTURE_ISOLATION);
    }
    if (event->captured) {
        say("a stream that waits for a captured event joins the capture; only captures of one stream are emulated");
        return NOT_SUPPORTED;
    }
    if (!event->pending || event->stream == &stream) return SUCCESS;
    return state.enqueue(stream, [&state, event] {
        return event->pending ? state.drain_until(*event->stream, [=] { return event->pending == 0; }) : SUCCESS;
    });
}

// ---- Capture and graphs

EXPORT CUresult cuStreamBeginCapture_v2(void* handle, int mode) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (&stream == &state.legacy) return CAPTURE_UNSUPPORTED;
    if (stream.capture) return INVALID_VALUE;
    stream.capture = std::make_unique<Capture>();
    stream.capture->mode = static_cast<CaptureMode>(mode);
    stream.capture->thread = std::this_thread::get_id();
    state.graphs.insert(stream.capture->graph.get());
    return SUCCESS;
}

EXPORT CUresult cuStreamEndCapture(void* handle, void** graph) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    *graph = nullptr;
    if (!stream.capture) return CAPTURE_UNMATCHED;
    const std::unique_ptr<Capture> capture = std::move(stream.capture);
    if (!capture->valid) return CAPTURE_INVALIDATED;
    *graph = new std::shared_ptr<Graph>(capture->graph);
    return SUCCESS;
}

EXPORT CUresult cuStreamIsCapturing(void* handle, int* status) {
    State& state = State::get();
    Lock lock(state.guard);
    const Stream& stream = *state.stream(handle);
    *status = !stream.capture ? 0 : stream.capture->valid ? 1 : 2;
    return SUCCESS;
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(int* mode) {
    *mode = driver::GLOBAL;
    return SUCCESS;
}

EXPORT CUresult cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long) {
    Lock lock(State::get().guard);
    *exec = new GraphExec{*static_cast<std::shared_ptr<Graph>*>(graph)};
    return SUCCESS;
}

EXPORT CUresult cuGraphDestroy(void* graph) {
    Lock lock(State::get().guard);
    delete static_cast<std::shared_ptr<Graph>*>(graph);
    return SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(void* exec) {
    Lock lock(State::get().guard);
    delete static_cast<GraphExec*>(exec);
    return SUCCESS;
}

EXPORT CUresult cuGraphUpload(void*, void*) { return SUCCESS; }

EXPORT CUresult cuGraphLaunch(void* exec, void* handle) {
    State& state = State::get();
    Lock lock(state.guard);
    Stream& stream = *state.stream(handle);
    if (const CUresult error = state.forbid_in_capture_of(stream, "cuGraphLaunch (child graphs are not emulated)")) {
        return error;
    }
    // The queued replay keeps the graph alive.
    const std::shared_ptr<Graph> graph = static_cast<GraphExec*>(exec)->graph;
    return state.enqueue(stream, [graph] {
        for (const driver::Work& node : graph->nodes) {
            if (const CUresult error = node()) return error;
        }
        return SUCCESS;
    });
}

EXPORT CUresult cuGraphGetNodes(void* graph, void**, size_t* count) {
    *count = (*static_cast<std::shared_ptr<Graph>*>(graph))->nodes.size();
    return SUCCESS;
}
