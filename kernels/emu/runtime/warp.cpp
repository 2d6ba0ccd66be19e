// What the lanes of a warp do together.
#include <algorithm>
#include <cstdio>

#include "launch.h"

namespace emu {
namespace {

std::string hex(uint32_t mask) {
    char text[16];
    std::snprintf(text, sizeof text, "0x%08x", mask);
    return text;
}

// Completes what the lanes of `mask` wait for, if all that live have come. `me` is one of them.
bool try_complete(Launch& launch, unsigned warp, const Thread& me) {
    const Operation& operation = *me.operation;
    const uint32_t mask = me.mask, wanted = mask & launch.live_lanes(warp);
    uint32_t& arrived = launch.waiting_lanes(warp);
    if ((arrived & wanted) != wanted) return false;
    Lanes lanes{};
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(wanted >> lane & 1)) continue;
        const Thread& other = launch.threads[warp * 32 + lane];
        if (!(other.mask >> me.lane() & 1)) return false;  // it waits for others first
        if (other.operation != me.operation || other.mask != mask) {
            launch.fault(std::string("lanes disagree: lane ") + std::to_string(lane) + " waits in " +
                             other.operation->name + " with mask " + hex(other.mask) + ", lane " +
                             std::to_string(me.lane()) + " in " + operation.name + " with mask " + hex(mask),
                         me.waits_at);
        }
        lanes[lane] = other.operands;
    }
    operation.complete(launch, lanes);
    if (operation.orders_memory) {
        launch.races.warp_synchronized(warp, wanted, wanted == launch.live_lanes(warp));
    }
    arrived &= ~wanted;
    for (unsigned lane = 0; lane < 32; lane++) {
        if (!(wanted >> lane & 1)) continue;
        Thread& other = launch.threads[warp * 32 + lane];
        if (&other != launch.running) launch.wake(other);
    }
    return true;
}

struct ShuffleOperands {
    Shuffle how;
    uint64_t value;
    int operand, width;
    uint64_t result;
};

// PTX ISA, shfl.sync: which lane's value `lane` gets.
int source_lane(const ShuffleOperands& wanted, int lane) {
    const int first = lane & ~(wanted.width - 1), last = first + wanted.width - 1;
    switch (wanted.how) {
        case Shuffle::index: return first | (wanted.operand & (wanted.width - 1));
        case Shuffle::up: return lane - wanted.operand < first ? lane : lane - wanted.operand;
        case Shuffle::down: return lane + wanted.operand > last ? lane : lane + wanted.operand;
        default: return (lane ^ wanted.operand) > last ? lane : lane ^ wanted.operand;
    }
}

void complete_shuffle(Launch& launch, const Lanes& lanes) {
    for (int lane = 0; lane < 32; lane++) {
        auto* mine = static_cast<ShuffleOperands*>(lanes[size_t(lane)]);
        if (!mine) continue;
        const int from = source_lane(*mine, lane) & 31;
        const auto* theirs = static_cast<const ShuffleOperands*>(lanes[size_t(from)]);
        if (!theirs) {
            launch.fault("shuffle: lane " + std::to_string(lane) + " takes the value of lane " + std::to_string(from) +
                             ", which does not take part (not in the mask, or it has ended)",
                         launch.running->waits_at);
        }
        mine->result = theirs->value;
    }
}

struct BallotOperands {
    bool value;
    uint32_t result;
};

void complete_ballot(Launch&, const Lanes& lanes) {
    uint32_t votes = 0;
    for (size_t i = 0; i < 32; i++) {
        if (lanes[i] && static_cast<BallotOperands*>(lanes[i])->value) votes |= 1u << i;
    }
    for (void* lane : lanes) {
        if (lane) static_cast<BallotOperands*>(lane)->result = votes;
    }
}

struct MatchOperands {
    uint64_t value;
    uint32_t result;
};

void complete_match(Launch&, const Lanes& lanes) {
    for (void* mine : lanes) {
        if (!mine) continue;
        uint32_t same = 0;
        for (size_t i = 0; i < 32; i++) {
            const auto* other = static_cast<MatchOperands*>(lanes[i]);
            if (other && other->value == static_cast<MatchOperands*>(mine)->value) same |= 1u << i;
        }
        static_cast<MatchOperands*>(mine)->result = same;
    }
}

struct ReduceOperands {
    WarpReduce how;
    uint32_t value;
    uint32_t result;
};

uint32_t reduced(WarpReduce how, uint32_t a, uint32_t b) {
    switch (how) {
        case WarpReduce::add: return a + b;
        case WarpReduce::min_signed: return uint32_t(std::min(int32_t(a), int32_t(b)));
        case WarpReduce::max_signed: return uint32_t(std::max(int32_t(a), int32_t(b)));
        case WarpReduce::min_unsigned: return std::min(a, b);
        case WarpReduce::max_unsigned: return std::max(a, b);
        case WarpReduce::bit_and: return a & b;
        case WarpReduce::bit_or: return a | b;
        default: return a ^ b;
    }
}

void complete_reduce(Launch&, const Lanes& lanes) {
    const ReduceOperands* first = nullptr;
    uint32_t total = 0;
    for (void* lane : lanes) {
        const auto* mine = static_cast<ReduceOperands*>(lane);
        if (!mine) continue;
        total = first ? reduced(first->how, total, mine->value) : mine->value;
        if (!first) first = mine;
    }
    for (void* lane : lanes) {
        if (lane) static_cast<ReduceOperands*>(lane)->result = total;
    }
}

void complete_nothing(Launch&, const Lanes&) {}

const Operation SYNCWARP{"__syncwarp", true, complete_nothing};
const Operation SHUFFLE{"__shfl_sync", false, complete_shuffle};
const Operation BALLOT{"__ballot_sync", false, complete_ballot};
const Operation MATCH{"__match_any_sync", false, complete_match};
const Operation REDUCE{"__reduce_sync", false, complete_reduce};

}  // namespace

void together(const Operation& operation, uint32_t mask, void* operands, const void* at) {
    Launch& launch = here();
    Thread& me = *launch.running;
    if (!(mask >> me.lane() & 1)) {
        launch.fault("lane " + std::to_string(me.lane()) + " calls " + operation.name + " with mask " + hex(mask) +
                         ", which does not name it",
                     at);
    }
    me.operation = &operation;
    me.mask = mask;
    me.operands = operands;
    me.waits_at = at;
    launch.waiting_lanes(me.warp()) |= 1u << me.lane();
    if (!try_complete(launch, me.warp(), me)) launch.wait(operation.name, at);
}

void warp_thread_left(Launch& launch, unsigned warp) {
    for (unsigned lane = 0; lane < 32; lane++) {
        if (launch.waiting_lanes(warp) >> lane & 1) try_complete(launch, warp, launch.threads[warp * 32 + lane]);
    }
}

void warp_barrier(uint32_t mask) { together(SYNCWARP, mask, &mask, __builtin_return_address(0)); }

uint64_t shuffle(Shuffle how, uint32_t mask, uint64_t value, int operand, int width) {
    const void* at = __builtin_return_address(0);
    if (width < 1 || width > 32 || (width & (width - 1))) {
        here().fault("shuffle with width " + std::to_string(width) + ": it is a power of two up to 32", at);
    }
    ShuffleOperands operands{how, value, operand, width, 0};
    together(SHUFFLE, mask, &operands, at);
    return operands.result;
}

uint32_t ballot(uint32_t mask, bool value) {
    BallotOperands operands{value, 0};
    together(BALLOT, mask, &operands, __builtin_return_address(0));
    return operands.result;
}

uint32_t match_any(uint32_t mask, uint64_t value) {
    MatchOperands operands{value, 0};
    together(MATCH, mask, &operands, __builtin_return_address(0));
    return operands.result;
}

uint32_t warp_reduce(WarpReduce how, uint32_t mask, uint32_t value) {
    ReduceOperands operands{how, value, 0};
    together(REDUCE, mask, &operands, __builtin_return_address(0));
    return operands.result;
}

}  // namespace emu
