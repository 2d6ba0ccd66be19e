#include "races.h"

#include <algorithm>

namespace emu {

Races::Races(Clock& clock, size_t threads)
    : clock_(clock), warps_((threads + 31) / 32), warp_time_(warps_) {
    tick();
    launch_start_ = block_start_ = barrier_time_ = clock_.now;
}

// Stops at its end: what comes then counts as simultaneous until the launch restarts the clock.
void Races::tick() {
    if (clock_.now < MOST_TIME) clock_.now++;
}

void Races::restart_clock() {
    clock_.now = 2;
    launch_start_ = 1;
    block_starts_.clear();
    releases_.clear();
    acquired_.clear();
}

void Races::block_begins() {
    tick();
    block_start_ = barrier_time_ = clock_.now;
    block_starts_.push_back(clock_.now);
    std::fill(warp_time_.begin(), warp_time_.end(), 0);
    lane_pairs_.clear();
    warp_pairs_.clear();
    acquired_.clear();
}

void Races::block_synchronized() {
    tick();
    barrier_time_ = clock_.now;
}

void Races::warp_synchronized(unsigned warp, uint32_t lanes, bool whole) {
    tick();
    if (whole) {
        warp_time_[warp] = clock_.now;
        return;
    }
    if (lane_pairs_.empty()) lane_pairs_.assign(warps_ * 32 * 32, 0);
    for (unsigned i = 0; i < 32; i++) {
        for (unsigned j = 0; j < 32; j++) {
            if ((lanes >> i & 1) && (lanes >> j & 1)) lane_pairs_[(warp * 32 + i) * 32 + j] = clock_.now;
        }
    }
}

void Races::warps_synchronized(const std::vector<unsigned>& threads) {
    tick();
    if (warp_pairs_.empty()) warp_pairs_.assign(warps_ * warps_, 0);
    std::vector<bool> takes_part(warps_);
    for (unsigned thread : threads) takes_part[thread / 32] = true;
    for (size_t i = 0; i < warps_; i++) {
        for (size_t j = 0; j < warps_; j++) {
            if (takes_part[i] && takes_part[j]) warp_pairs_[i * warps_ + j] = clock_.now;
        }
    }
}

void Races::released(uintptr_t at, unsigned thread, uint32_t fenced) {
    const uint32_t block = static_cast<uint32_t>(block_starts_.size());
    releases_[at].push_back({block, thread, fenced, std::min(barrier_time_, fenced),
                             std::min(warp_time_[thread / 32], fenced)});
}

void Races::acquired(uintptr_t at) {
    auto found = releases_.find(at);
    if (found == releases_.end()) return;
    for (const Release& release : found->second) {
        if (release.block == block_starts_.size()) continue;
        std::vector<Release>& known = acquired_[release.block];
        const bool again = std::any_of(known.begin(), known.end(), [&](const Release& r) {
            return r.thread == release.thread && r.until == release.until;
        });
        if (!again) known.push_back(release);
    }
}

bool Races::ordered_across_blocks(uint32_t cell) const {
    if (time_of(cell) < launch_start_) return true;
    const auto next = std::upper_bound(block_starts_.begin(), block_starts_.end(), time_of(cell));
    const auto known = acquired_.find(static_cast<uint32_t>(next - block_starts_.begin()));
    if (known == acquired_.end()) return false;
    return std::any_of(known->second.begin(), known->second.end(), [&](const Release& r) {
        return time_of(cell) < r.block_until || (thread_of(cell) == r.thread && time_of(cell) <= r.until) ||
               (thread_of(cell) / 32 == r.thread / 32 && time_of(cell) < r.warp_until);
    });
}

bool Races::ordered(uint32_t cell, unsigned thread, bool global) const {
    const uint32_t time = time_of(cell);
    if (time < block_start_) return !global || ordered_across_blocks(cell);
    const unsigned other = thread_of(cell);
    if (other == thread || time < barrier_time_) return true;
    const unsigned warp = thread / 32;
    if (other / 32 == warp) {
        if (time < warp_time_[warp]) return true;
        if (!lane_pairs_.empty() && time < lane_pairs_[thread * 32 + other % 32]) return true;
    }
    return !warp_pairs_.empty() && time < warp_pairs_[warp * warps_ + other / 32];
}

// As `ordered`, for all the reads that a cell stands for. Its time is that of the latest of them.
bool Races::reads_ordered(uint32_t cell, unsigned thread, bool global) const {
    const uint32_t time = time_of(cell);
    switch (note_of(cell)) {
        case SAME_WARP:
            if (time < block_start_ || time < barrier_time_) return ordered(cell, thread, global);
            if (thread_of(cell) / 32 == thread / 32) return time < warp_time_[thread / 32];
            return ordered(cell, thread, global);
        case OTHER_WARPS: {
            if (time < block_start_ || time < barrier_time_) return ordered(cell, thread, global);
            if (warp_pairs_.empty()) return false;
            const uint32_t* row = &warp_pairs_[thread / 32 * warps_];
            return time < *std::max_element(row, row + warps_);
        }
        case OTHER_BLOCKS: return time < launch_start_ || !acquired_.empty();
        default: return ordered(cell, thread, global);
    }
}

// The cell after one more read, by `thread`, now.
uint32_t Races::read_cell(uint32_t before, unsigned thread, bool global) const {
    uint32_t note = ALONE;
    const uint32_t time = time_of(before);
    const bool this_launch = global && time >= launch_start_;
    if (this_launch && (time < block_start_ || note_of(before) == OTHER_BLOCKS)) {
        note = OTHER_BLOCKS;
    } else if (time >= barrier_time_) {
        note = note_of(before);
        if (thread_of(before) != thread && !ordered(before, thread, global)) {
            note = thread_of(before) / 32 != thread / 32 ? OTHER_WARPS : note == OTHER_WARPS ? OTHER_WARPS : SAME_WARP;
        }
    }
    return cell(clock_.now, thread, note);
}

bool Races::access(uint32_t* writes, uint32_t* reads, size_t bytes, Access how, unsigned thread, bool global,
                   Conflict& conflict) {
    const uint32_t mark = cell(clock_.now, thread, how == Access::atomic ? ATOMIC : PLAIN);
    uint32_t fine_write = mark, seen_read = 0, fresh_read = read_cell(0, thread, global), fine_read = 0;
    for (size_t i = 0; i < bytes; i++) {
        const uint32_t wrote = writes[i];
        if (wrote != fine_write) {
            const bool both_atomic = how == Access::atomic && note_of(wrote) == ATOMIC && wrote != WRITTEN_BY_HOST;
            if (!both_atomic && !ordered(wrote, thread, global)) {
                conflict = {i, wrote, true};
                return false;
            }
            fine_write = wrote;
        }
        if (how == Access::read) {
            if (reads[i] != seen_read) {
                seen_read = reads[i];
                fresh_read = read_cell(seen_read, thread, global);
            }
            reads[i] = fresh_read;
        } else {
            if (reads[i] != fine_read) {
                if (!reads_ordered(reads[i], thread, global)) {
                    conflict = {i, reads[i], false};
                    return false;
                }
                fine_read = reads[i];
            }
            writes[i] = mark;
        }
    }
    return true;
}

}  // namespace emu
