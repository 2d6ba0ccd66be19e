// Who accessed which byte when, and whether two accesses are ordered: by a barrier of the block, a __syncwarp, a named
// barrier, or a fence and an atomic between blocks. Knows nothing of kernels' values.
//
// A clock ticks at each synchronization. Blocks run one after the other, so that an access's time also tells its block.
// Shuffles, ballots and mma order nothing in memory, as in CUDA. Two writes race even if they write the same value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace emu {

// A cell of a shadow: time in the upper 20 bits, the thread's number in its block in 10, and 2 that say more.
constexpr uint32_t cell(uint32_t time, unsigned thread, uint32_t note) { return time << 12 | thread << 2 | note; }
constexpr uint32_t time_of(uint32_t cell) { return cell >> 12; }
constexpr unsigned thread_of(uint32_t cell) { return cell >> 2 & 1023; }
constexpr uint32_t note_of(uint32_t cell) { return cell & 3; }
constexpr uint32_t MOST_TIME = (1u << 20) - 1;

// Notes on the last write.
constexpr uint32_t PLAIN = 0, ATOMIC = 1, IN_FLIGHT = 2;
// Notes on the last read: who else read since.
constexpr uint32_t ALONE = 0, SAME_WARP = 1, OTHER_WARPS = 2, OTHER_BLOCKS = 3;
constexpr uint32_t WRITTEN_BY_HOST = 1;

enum class Access { read, write, atomic };

// A device's time, which goes on from launch to launch.
struct Clock {
    uint32_t now = 1;
};

// What a release published: the accesses of a block's thread, and those that had been synchronized with it.
struct Release {
    uint32_t block;
    unsigned thread;
    uint32_t until;         // its own accesses
    uint32_t block_until;   // its block's, ordered by a barrier
    uint32_t warp_until;    // its warp's, ordered by a __syncwarp
};

class Races {
public:
    Races(Clock& clock, size_t threads);

    void block_begins();
    void block_synchronized();
    void warp_synchronized(unsigned warp, uint32_t lanes, bool whole);
    void warps_synchronized(const std::vector<unsigned>& threads);
    // A thread's fence, then its atomic on an address.
    void released(uintptr_t at, unsigned thread, uint32_t fenced);
    void acquired(uintptr_t at);

    // Marks the cells; false at a conflict, with `other` the earlier access's cell and whether that was a write.
    struct Conflict {
        size_t byte;
        uint32_t earlier;
        bool earlier_wrote;
    };
    // `global`: other blocks see these bytes too.
    bool access(uint32_t* writes, uint32_t* reads, size_t bytes, Access how, unsigned thread, bool global,
                Conflict& conflict);

    uint32_t now() const { return clock_.now; }
    uint32_t block_start() const { return block_start_; }
    bool is_of_this_block(uint32_t cell) const { return time_of(cell) >= block_start_; }
    bool clock_is_late() const { return clock_.now > MOST_TIME - 4096; }
    void restart_clock();

private:
    void tick();
    bool ordered(uint32_t cell, unsigned thread, bool global) const;
    bool reads_ordered(uint32_t cell, unsigned thread, bool global) const;
    bool ordered_across_blocks(uint32_t cell) const;
    uint32_t read_cell(uint32_t before, unsigned thread, bool global) const;

    Clock& clock_;
    size_t warps_;
    uint32_t launch_start_;
    uint32_t block_start_;
    uint32_t barrier_time_;
    std::vector<uint32_t> warp_time_;
    std::vector<uint32_t> lane_pairs_;  // [warp][lane][lane], only once a part of a warp synchronized
    std::vector<uint32_t> warp_pairs_;  // [warp][warp], only once a named barrier was used
    std::vector<uint32_t> block_starts_;
    std::unordered_map<uintptr_t, std::vector<Release>> releases_;
    std::unordered_map<uint32_t, std::vector<Release>> acquired_;
};

}  // namespace emu
