// Modules, functions and launches. Any image loads; a kernel is known by its name alone.
#include <cstring>

#include "driver.h"

using driver::Function;
using driver::Lock;
using driver::Module;
using driver::say;
using driver::State;
using driver::Stream;

namespace {

constexpr int MOST_SHARED = 227 << 10;

struct Launch {
    std::string kernel;
    uint32_t grid[3], block[3], shared_bytes;
    std::vector<uint64_t> values;
};

CUresult run(State& state, const Launch& launch) {
    std::vector<void*> arguments;
    for (const uint64_t& value : launch.values) arguments.push_back(const_cast<uint64_t*>(&value));
    const int code = emu_launch(state.device, launch.kernel.c_str(), launch.grid, launch.block, launch.shared_bytes,
                                arguments.data(), arguments.size());
    if (code != 0) {
        say(launch.kernel + ": " + emu_error(state.device));
        return LAUNCH_FAILED;
    }
    state.refuses = state.refuses || state.refusal.pulled_by(launch.kernel);
    if (!state.fault.pulled_by(launch.kernel)) return SUCCESS;
    say(launch.kernel + ": an illegal access, as PLIMSOLL_EMU_FAULT asks");
    return ILLEGAL_ADDRESS;
}

CUresult launch(const Function& function, const uint32_t (&grid)[3], const uint32_t (&block)[3], uint32_t shared_bytes,
                void* handle, void** parameters) {
    State& state = State::get();
    Lock lock(state.guard);
    const int count = emu_parameters(function.name.c_str());
    if (count < 0) {
        say("no kernel is named " + function.name + ": it is not one of Plimsoll's, and only those are emulated");
        return LAUNCH_FAILED;
    }
    if (shared_bytes > static_cast<uint32_t>(function.most_dynamic_shared)) {
        say(function.name + ": " + std::to_string(shared_bytes) + " bytes of dynamic shared memory, of which " +
            std::to_string(function.most_dynamic_shared) + " were asked for by cuFuncSetAttribute");
        return INVALID_VALUE;
    }
    Launch launch{function.name, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared_bytes, {}};
    for (int i = 0; i < count; i++) {
        uint64_t value = 0;
        std::memcpy(&value, parameters[i], emu_parameter_bytes(function.name.c_str(), static_cast<size_t>(i)));
        launch.values.push_back(value);
    }
    return state.enqueue(*state.stream(handle), [&state, launch] { return run(state, launch); });
}

// CUlaunchConfig, and of its attributes what is looked at: the cluster's size.
struct LaunchAttribute {
    int which;
    char padding[4];
    uint32_t value[16];
};

struct LaunchConfig {
    uint32_t grid[3], block[3], shared_bytes;
    void* stream;
    LaunchAttribute* attributes;
    uint32_t attribute_count;
};

constexpr int CLUSTER_DIMENSION = 4;

}  // namespace

EXPORT CUresult cuModuleLoadData(void** module, const void* image) {
    State& state = State::get();
    Lock lock(state.guard);
    if (!image) return INVALID_VALUE;
    if (const CUresult error = state.forbid_in_capture("cuModuleLoadData")) return error;
    *module = new Module();
    return SUCCESS;
}

EXPORT CUresult cuModuleLoadDataEx(void** module, const void* image, unsigned, int*, void**) {
    return cuModuleLoadData(module, image);
}

EXPORT CUresult cuModuleUnload(void* module) {
    Lock lock(State::get().guard);
    delete static_cast<Module*>(module);
    return SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(void** function, void* module, const char* name) {
    Lock lock(State::get().guard);
    std::unique_ptr<Function>& found = static_cast<Module*>(module)->functions[name];
    if (!found) found = std::make_unique<Function>(Function{name});
    *function = found.get();
    return SUCCESS;
}

EXPORT CUresult cuModuleGetGlobal_v2(CUdeviceptr*, size_t*, void*, const char*) { return NOT_FOUND; }

EXPORT CUresult cuFuncGetAttribute(int* value, int which, void* function) {
    switch (which) {
        case 0: *value = 1024; break;                                                   // threads a block
        case 4: *value = 32; break;                                                     // registers
        case 5: case 6: *value = 90; break;                                             // PTX and binary version
        case 8: *value = static_cast<Function*>(function)->most_dynamic_shared; break;  // dynamic shared memory
        default: *value = 0;
    }
    return SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(void* function, int which, int value) {
    constexpr int MAX_DYNAMIC_SHARED = 8;
    if (which != MAX_DYNAMIC_SHARED) return SUCCESS;
    if (value < 0 || value > MOST_SHARED) return INVALID_VALUE;
    static_cast<Function*>(function)->most_dynamic_shared = value;
    return SUCCESS;
}

EXPORT CUresult cuFuncLoad(void*) { return SUCCESS; }

EXPORT CUresult cuFuncSetCacheConfig(void*, int) { return SUCCESS; }

EXPORT CUresult cuLaunchKernel(void* function, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by,
                               uint32_t bz, uint32_t shared_bytes, void* stream, void** parameters, void**) {
    return launch(*static_cast<Function*>(function), {gx, gy, gz}, {bx, by, bz}, shared_bytes, stream, parameters);
}

EXPORT CUresult cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void**) {
    for (uint32_t i = 0; i < config->attribute_count; i++) {
        const LaunchAttribute& attribute = config->attributes[i];
        const uint32_t* size = attribute.value;
        if (attribute.which == CLUSTER_DIMENSION && size[0] * size[1] * size[2] > 1) {
            say("clusters of blocks are not emulated");
            return NOT_SUPPORTED;
        }
    }
    return launch(*static_cast<Function*>(function), config->grid, config->block, config->shared_bytes, config->stream,
                  parameters);
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, size_t) {
    *blocks = threads > 0 ? 2048 / threads : 0;
    return SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void* function, int threads,
                                                                     size_t shared_bytes, unsigned) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared_bytes);
}
