#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "races.h"

namespace emu {
namespace {

constexpr size_t QUARANTINE = 64;
// Larger allocations are left as zeros: to poison them would take their memory for good.
constexpr size_t MOST_POISONED = 64 << 20;

void* reserve(size_t bytes) {
    void* at = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    return at;
}

}  // namespace

Shadow::Shadow(size_t covered) : bytes(covered) {
    writes = static_cast<uint32_t*>(reserve(2 * covered * sizeof(uint32_t)));
    reads = writes + covered;
}

Shadow::~Shadow() { munmap(writes, std::max<size_t>(2 * bytes * sizeof(uint32_t), 1)); }

Allocation::Allocation(size_t size) : base(reinterpret_cast<uintptr_t>(reserve(size))), bytes(size), shadow(size) {
    if (size <= MOST_POISONED) std::memset(reinterpret_cast<void*>(base), 0xFF, size);
}

Allocation::~Allocation() { munmap(reinterpret_cast<void*>(base), std::max<size_t>(bytes, 1)); }

uintptr_t Memory::allocate(size_t bytes) {
    if (bytes > limit || used > limit - bytes) return 0;
    // The map's key is the address, which only the allocation itself knows: make it, then place its node.
    std::map<uintptr_t, Allocation> fresh;
    auto made = fresh.try_emplace(0, bytes).first;
    auto node = fresh.extract(made);
    node.key() = node.mapped().base;
    used += bytes;
    return allocations_.insert(std::move(node)).position->first;
}

bool Memory::release(uintptr_t base) {
    auto node = allocations_.extract(base);
    if (node.empty()) return false;
    used -= node.mapped().bytes;
    std::fill(std::begin(latest_), std::end(latest_), nullptr);
    madvise(reinterpret_cast<void*>(base), node.mapped().bytes, MADV_DONTNEED);
    madvise(node.mapped().shadow.writes, 2 * node.mapped().bytes * sizeof(uint32_t), MADV_DONTNEED);
    freed_.push_back(std::move(node));
    if (freed_.size() > QUARANTINE) freed_.pop_front();
    return true;
}

Allocation* Memory::find(uintptr_t at) {
    Allocation*& cached = latest_[(at >> 8) % 64];
    if (cached && cached->holds(at, 1)) return cached;
    auto after = allocations_.upper_bound(at);
    if (after == allocations_.begin()) return nullptr;
    Allocation& below = std::prev(after)->second;
    if (!below.holds(at, 1)) return nullptr;
    return cached = &below;
}

std::string Memory::describe(uintptr_t at) const {
    char text[256];
    for (const auto& node : freed_) {
        if (node.mapped().holds(at, 1)) return "in an allocation of " + std::to_string(node.mapped().bytes) +
                                               " bytes that was freed";
    }
    auto after = allocations_.upper_bound(at);
    if (after != allocations_.begin()) {
        const Allocation& below = std::prev(after)->second;
        const size_t offset = at - below.base;
        const char* where = offset < below.bytes ? "within" : "past the end of";
        const size_t distance = offset < below.bytes ? offset : offset - below.bytes;
        if (distance < (size_t(1) << 30) || offset < below.bytes) {
            std::snprintf(text, sizeof text, "%zu bytes %s the allocation of %zu bytes at 0x%zx", distance, where,
                          below.bytes, static_cast<size_t>(below.base));
            return text;
        }
    }
    if (after != allocations_.end() && after->first - at < (size_t(1) << 20)) {
        std::snprintf(text, sizeof text, "%zu bytes before the allocation of %zu bytes at 0x%zx",
                      static_cast<size_t>(after->first - at), after->second.bytes, static_cast<size_t>(after->first));
        return text;
    }
    return at < 4096 ? "a null pointer, plus " + std::to_string(at) : "in no allocation";
}

bool Memory::covers(uintptr_t at, size_t bytes, std::string& why) {
    if (bytes == 0) return true;
    Allocation* found = find(at);
    if (found && found->holds(at, bytes)) return true;
    char text[96];
    std::snprintf(text, sizeof text, "%zu bytes from 0x%zx on are not all allocated: ", bytes, static_cast<size_t>(at));
    why = text + describe(found ? found->base + found->bytes : at);
    return false;
}

void Memory::written_by_host(uintptr_t at, size_t bytes) {
    if (!track_unwritten) return;
    if (Allocation* found = find(at)) {
        std::fill_n(found->shadow.writes + (at - found->base), bytes, WRITTEN_BY_HOST);
    }
}

void Memory::forget_accesses() {
    for (auto& [base, allocation] : allocations_) {
        Shadow& shadow = allocation.shadow;
        if (!track_unwritten) {
            madvise(shadow.writes, 2 * shadow.bytes * sizeof(uint32_t), MADV_DONTNEED);
            continue;
        }
        for (size_t i = 0; i < shadow.bytes; i++) shadow.writes[i] = shadow.writes[i] ? WRITTEN_BY_HOST : 0;
        std::memset(shadow.reads, 0, shadow.bytes * sizeof(uint32_t));
    }
}

}  // namespace emu
