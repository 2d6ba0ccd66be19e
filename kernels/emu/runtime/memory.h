// A device's memory: allocations with exact bounds, and beside each a shadow that the race check writes to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

namespace emu {

// What was last done to each byte of a region: see races.h. Pages of it that are never touched take no memory.
struct Shadow {
    uint32_t* writes = nullptr;
    uint32_t* reads = nullptr;
    size_t bytes = 0;

    explicit Shadow(size_t covered);
    ~Shadow();
    Shadow(const Shadow&) = delete;
    Shadow& operator=(const Shadow&) = delete;
};

struct Allocation {
    uintptr_t base;
    size_t bytes;
    Shadow shadow;

    explicit Allocation(size_t size);
    ~Allocation();
    Allocation(const Allocation&) = delete;
    Allocation& operator=(const Allocation&) = delete;
    bool holds(uintptr_t at, size_t size) const {
        return at >= base && size <= bytes && at - base <= bytes - size;
    }
};

class Memory {
public:
    // Filled with 0xFF, which is a NaN in every float type. 0 when more than `limit` bytes would be in use.
    uintptr_t allocate(size_t bytes);
    bool release(uintptr_t base);
    // The allocation that holds this byte, or null.
    Allocation* find(uintptr_t at);
    // In words: which allocation the address is in, or next to.
    std::string describe(uintptr_t at) const;
    // True if the host may read or write all of these bytes; if not, `why` says why.
    bool covers(uintptr_t at, size_t bytes, std::string& why);
    void written_by_host(uintptr_t at, size_t bytes);
    // Forgets who accessed what; keeps which bytes were ever written.
    void forget_accesses();

    size_t limit = SIZE_MAX;
    size_t used = 0;
    bool track_unwritten = false;

private:
    std::map<uintptr_t, Allocation> allocations_;
    // Freed not long ago: their addresses are not given out again yet, so that a late access to them is noticed.
    std::deque<std::map<uintptr_t, Allocation>::node_type> freed_;
    Allocation* latest_[64] = {};
};

}  // namespace emu
