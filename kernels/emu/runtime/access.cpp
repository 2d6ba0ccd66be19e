#include "access.h"

#include <link.h>

#include <algorithm>

#include "launch.h"

namespace emu {
namespace {

// The calling host thread's storage of `__shared__` variables, which are its thread-local variables.
struct Image {
    uintptr_t shared = 0;
    size_t shared_bytes = 0;
    uintptr_t first = UINTPTR_MAX, last = 0;  // of code and constants
};

thread_local char anchor;

int find_image(dl_phdr_info* info, size_t, void* found) {
    Image& image = *static_cast<Image*>(found);
    const uintptr_t code = reinterpret_cast<uintptr_t>(&find_image);
    Image here;
    bool is_this = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)& part = info->dlpi_phdr[i];
        const uintptr_t at = info->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD) {
            if (code >= at && code - at < part.p_memsz) is_this = true;
            here.first = std::min<uintptr_t>(here.first, at);
            here.last = std::max<uintptr_t>(here.last, at + part.p_memsz);
        }
        if (part.p_type == PT_TLS) {
            here.shared = reinterpret_cast<uintptr_t>(info->dlpi_tls_data);
            here.shared_bytes = part.p_memsz;
        }
    }
    if (is_this) image = here;
    return is_this;
}

const Image& image() {
    static thread_local Image found = [] {
        anchor = 1;  // so that the storage exists
        Image image;
        dl_iterate_phdr(find_image, &image);
        return image;
    }();
    return found;
}

// Where accesses to shared memory of the launch at work are noted.
struct Shared {
    uintptr_t fixed, dynamic;
    size_t fixed_bytes, dynamic_bytes;
    Shadow fixed_shadow, dynamic_shadow;
};

thread_local Shared* shared = nullptr;

// The region an address is in.
struct Place {
    uint32_t* writes = nullptr;
    uint32_t* reads = nullptr;
    size_t offset = 0;
    const char* what = nullptr;
    bool is_fixed = false;
    bool is_global = false;
};

std::string times(size_t bytes) { return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes"); }

std::string verb(Access how, size_t bytes) {
    const char* word = how == Access::read ? "reads " : how == Access::write ? "writes " : "atomically accesses ";
    return word + times(bytes) + " ";
}

bool within(uintptr_t at, size_t bytes, uintptr_t base, size_t size) {
    return at >= base && at - base < size && bytes <= size - (at - base);
}

[[noreturn]] void out_of_bounds(Launch& launch, uintptr_t at, size_t bytes, Access how, const void* instruction) {
    std::string where;
    if (at - shared->dynamic < shared->dynamic_bytes + 4096) {
        where = "at offset " + std::to_string(at - shared->dynamic) + " of " +
                std::to_string(shared->dynamic_bytes) + " bytes of dynamic shared memory";
    } else {
        for (const Thread& thread : launch.threads) {
            if (within(at, bytes, reinterpret_cast<uintptr_t>(thread.stack), STACK_BYTES)) {
                where = "in the local memory of thread " + std::to_string(thread.number);
            }
        }
        Allocation* touched = launch.memory.find(at);
        if (where.empty() && touched) at = touched->base + touched->bytes;
        if (where.empty()) where = launch.memory.describe(at);
    }
    launch.fault("out of bounds: " + verb(how, bytes) + where, instruction);
}

Place place_of(Launch& launch, uintptr_t at, size_t bytes, Access how, const void* instruction) {
    Place place;
    if (within(at, bytes, shared->fixed, shared->fixed_bytes)) {
        place.offset = at - shared->fixed;
        place.writes = shared->fixed_shadow.writes + place.offset;
        place.reads = shared->fixed_shadow.reads + place.offset;
        place.what = "static shared memory";
        place.is_fixed = true;
    } else if (within(at, bytes, shared->dynamic, shared->dynamic_bytes)) {
        place.offset = at - shared->dynamic;
        place.writes = shared->dynamic_shadow.writes + place.offset;
        place.reads = shared->dynamic_shadow.reads + place.offset;
        place.what = "dynamic shared memory";
    } else if (Allocation* found = launch.memory.find(at); found && found->holds(at, bytes)) {
        place.offset = at - found->base;
        place.writes = found->shadow.writes + place.offset;
        place.reads = found->shadow.reads + place.offset;
        place.what = "global memory";
        place.is_global = true;
    } else if (how != Access::read || !within(at, bytes, image().first, image().last - image().first)) {
        out_of_bounds(launch, at, bytes, how, instruction);
    }
    return place;
}

std::string whose(Launch& launch, uint32_t cell) {
    const std::string thread = "thread " + std::to_string(thread_of(cell));
    return launch.races.is_of_this_block(cell) ? thread : thread + " of another block";
}

[[noreturn]] void race(Launch& launch, const Place& place, uintptr_t at, size_t bytes, Access how,
                       const Races::Conflict& conflict, const void* instruction) {
    std::string where = place.is_global ? "of global memory, " + launch.memory.describe(at + conflict.byte)
                                        : std::string("of ") + place.what + " (offset " +
                                              std::to_string(place.offset + conflict.byte) + ")";
    const bool same_block = launch.races.is_of_this_block(conflict.earlier);
    launch.fault("race: " + verb(how, bytes) + where + ", which " + whose(launch, conflict.earlier) +
                     (conflict.earlier_wrote ? " wrote" : " read") +
                     (same_block ? " with no barrier between" : " in the same launch"),
                 instruction);
}

// A block's shared variables hold nothing of use until it writes them: bytes not touched yet become NaNs.
void poison_untouched(Launch& launch, const Place& place, uintptr_t at, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        if (!launch.races.is_of_this_block(place.writes[i]) && !launch.races.is_of_this_block(place.reads[i])) {
            reinterpret_cast<unsigned char*>(at)[i] = 0xFF;
        }
    }
}

void check_notes(Launch& launch, const Place& place, uintptr_t at, size_t bytes, Access how, const void* instruction) {
    for (size_t i = 0; i < bytes; i++) {
        const uint32_t wrote = place.writes[i];
        if (i > 0 && wrote == place.writes[i - 1]) continue;
        if (!place.is_global && note_of(wrote) == IN_FLIGHT && launch.races.is_of_this_block(wrote)) {
            launch.fault(verb(how, bytes) + "of " + place.what + " (offset " + std::to_string(place.offset + i) +
                             ") into which a cp_async_16 of " + whose(launch, wrote) +
                             " is under way: no cp_async_wait by that thread came before",
                         instruction);
        }
        if (place.is_global && wrote == 0 && how != Access::write && launch.memory.track_unwritten) {
            launch.fault(verb(how, bytes) + launch.memory.describe(at + i) + ", which nobody has written", instruction);
        }
    }
}

}  // namespace

void access_begins(Launch& launch) {
    const Image& own = image();
    const uintptr_t dynamic = reinterpret_cast<uintptr_t>(launch.dynamic);
    access_ends();
    shared = new Shared{own.shared, dynamic, own.shared_bytes, launch.request.shared_bytes,
                        Shadow(own.shared_bytes), Shadow(launch.request.shared_bytes)};
}

void access_ends() {
    delete shared;
    shared = nullptr;
}

void forget_shared_accesses() {
    Launch& launch = here();
    access_begins(launch);
}

bool is_shared(const void* pointer) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    return within(at, 1, shared->fixed, shared->fixed_bytes) || within(at, 1, shared->dynamic, shared->dynamic_bytes);
}

void check_access(const void* pointer, size_t bytes, Access how, const void* instruction) {
    Launch* launch = current_launch();
    if (!launch || !launch->running || bytes == 0) return;
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    if (at - reinterpret_cast<uintptr_t>(launch->running->stack) < STACK_BYTES) return;
    const Place place = place_of(*launch, at, bytes, how, instruction);
    if (!place.writes || !launch->request.check_races) return;
    if (place.is_fixed && how != Access::write) poison_untouched(*launch, place, at, bytes);
    check_notes(*launch, place, at, bytes, how, instruction);
    Races::Conflict conflict;
    if (!launch->races.access(place.writes, place.reads, bytes, how, launch->running->number, place.is_global, conflict)) {
        race(*launch, place, at, bytes, how, conflict, instruction);
    }
}

void check_volatile_read(const void* pointer, size_t bytes, const void* instruction) {
    Launch& launch = here();
    const uintptr_t at = reinterpret_cast<uintptr_t>(pointer);
    if (at - reinterpret_cast<uintptr_t>(launch.running->stack) < STACK_BYTES) return;
    const Place place = place_of(launch, at, bytes, Access::read, instruction);
    if (!place.writes || !launch.request.check_races) return;
    if (place.is_fixed) poison_untouched(launch, place, at, bytes);
    check_notes(launch, place, at, bytes, Access::read, instruction);
}

void begin_flight(void* to, size_t bytes, const void* instruction) {
    Launch& launch = here();
    if (!is_shared(to)) launch.fault("cp_async_16 to memory that is not shared", instruction);
    check_access(to, bytes, Access::write, instruction);
    if (!launch.request.check_races) return;
    const Place place = place_of(launch, reinterpret_cast<uintptr_t>(to), bytes, Access::write, instruction);
    const uint32_t mark = cell(launch.races.now(), launch.running->number, IN_FLIGHT);
    for (size_t i = 0; i < bytes; i++) place.writes[i] = mark;
}

void landed(void* to, size_t bytes) {
    Launch& launch = here();
    if (!launch.request.check_races) return;
    const Place place = place_of(launch, reinterpret_cast<uintptr_t>(to), bytes, Access::write, nullptr);
    const uint32_t mark = cell(launch.races.now(), launch.running->number, PLAIN);
    for (size_t i = 0; i < bytes; i++) place.writes[i] = mark;
}

}  // namespace emu
