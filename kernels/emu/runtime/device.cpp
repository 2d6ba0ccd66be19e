#include "device.h"

#include <cstring>
#include <new>
#include <string>
#include <unordered_map>

#include "launch.h"

// Generated: the kernels of each source.
extern const emu::Entries* const plimsoll_emu_sources[];
extern const size_t plimsoll_emu_source_count;

struct EmuDevice {
    emu::Memory memory;
    emu::Clock clock;
    emu::Random random;
    bool check_races;
    std::string error;

    EmuDevice(uint64_t seed, uint32_t checks) : random(seed), check_races(checks & 1) {
        memory.track_unwritten = checks & 2;
    }
};

namespace {

const emu::Entry* find_entry(const char* name) {
    static const auto all = [] {
        std::unordered_map<std::string, const emu::Entry*> found;
        for (size_t i = 0; i < plimsoll_emu_source_count; i++) {
            const emu::Entries& source = *plimsoll_emu_sources[i];
            for (size_t k = 0; k < source.count; k++) found[source.first[k].name] = &source.first[k];
        }
        return found;
    }();
    const auto found = all.find(name);
    return found == all.end() ? nullptr : found->second;
}

int failed(EmuDevice* device, int code, std::string message) {
    device->error = std::move(message);
    return code;
}

}  // namespace

extern "C" {

EmuDevice* emu_device_new(uint64_t seed, size_t memory_limit, uint32_t checks) {
    EmuDevice* device = new EmuDevice(seed, checks);
    device->memory.limit = memory_limit;
    return device;
}

void emu_device_free(EmuDevice* device) { delete device; }

uint64_t emu_alloc(EmuDevice* device, size_t bytes) {
    try {
        return device->memory.allocate(bytes);
    } catch (const std::bad_alloc&) {
        return 0;  // the host has no more
    }
}

int emu_release(EmuDevice* device, uint64_t at) {
    if (device->memory.release(at)) return 0;
    return failed(device, 1, "not an allocation: " + device->memory.describe(at));
}

int emu_copy_in(EmuDevice* device, uint64_t to, const void* from, size_t bytes) {
    if (!device->memory.covers(to, bytes, device->error)) return 1;
    if (bytes) std::memmove(reinterpret_cast<void*>(to), from, bytes);
    device->memory.written_by_host(to, bytes);
    return 0;
}

int emu_copy_out(EmuDevice* device, void* to, uint64_t from, size_t bytes) {
    if (!device->memory.covers(from, bytes, device->error)) return 1;
    if (bytes) std::memmove(to, reinterpret_cast<const void*>(from), bytes);
    return 0;
}

int emu_launch(EmuDevice* device, const char* kernel, const uint32_t grid[3], const uint32_t block[3],
               uint32_t shared_bytes, void* const* arguments, size_t count) {
    const emu::Entry* entry = find_entry(kernel);
    if (!entry) return failed(device, 2, std::string("no kernel is named ") + kernel);
    if (count != SIZE_MAX && count != entry->parameters) {
        return failed(device, 1, std::to_string(count) + " arguments for " + std::to_string(entry->parameters) +
                                     " parameters");
    }
    const emu::Request request{entry, arguments, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]},
                               shared_bytes, device->random.bits(), device->check_races};
    emu::Launch launch(device->memory, device->clock, request);
    return launch.run() ? 0 : failed(device, 1, launch.error);
}

int emu_parameters(const char* kernel) {
    const emu::Entry* entry = find_entry(kernel);
    return entry ? static_cast<int>(entry->parameters) : -1;
}

size_t emu_parameter_bytes(const char* kernel, size_t index) {
    const emu::Entry* entry = find_entry(kernel);
    return entry && index < entry->parameters ? entry->parameter_bytes[index] : 0;
}

int emu_check_range(EmuDevice* device, uint64_t at, size_t bytes) {
    return device->memory.covers(at, bytes, device->error) ? 0 : 1;
}

size_t emu_memory_used(const EmuDevice* device) { return device->memory.used; }

const char* emu_error(const EmuDevice* device) { return device->error.c_str(); }
}
