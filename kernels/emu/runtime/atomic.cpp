// Atomic reads and writes. Only one thread runs at a time, so each is plain code; the shadow is told that it is atomic.
#include <algorithm>
#include <cstring>

#include "access.h"
#include "launch.h"

namespace emu {
namespace {

template <typename T> T after(Atomic what, T before, T operand, T compare) {
    switch (what) {
        case Atomic::add: return before + operand;
        case Atomic::min: return std::min(before, operand);
        case Atomic::max: return std::max(before, operand);
        case Atomic::exchange: return operand;
        case Atomic::compare_exchange: return std::memcmp(&before, &compare, sizeof(T)) == 0 ? operand : before;
        case Atomic::increment: return before >= operand ? T(0) : before + T(1);
        case Atomic::decrement: return before == T(0) || before > operand ? operand : before - T(1);
        default: break;
    }
    if constexpr (std::is_integral_v<T>) {
        if (what == Atomic::bit_and) return before & operand;
        if (what == Atomic::bit_or) return before | operand;
        if (what == Atomic::bit_xor) return before ^ operand;
    }
    return before;
}

template <typename T> uint64_t apply(Atomic what, void* at, uint64_t operand, uint64_t compare, const void* from) {
    Launch& launch = here();
    const uintptr_t address = reinterpret_cast<uintptr_t>(at);
    if (address % sizeof(T)) {
        launch.fault("misaligned: an atomic on " + std::to_string(sizeof(T)) + " bytes " +
                         launch.memory.describe(address),
                     from);
    }
    check_access(at, sizeof(T), Access::atomic, from);
    const Thread& me = *launch.running;
    if (me.fenced) launch.races.released(address, me.number, me.fenced);
    launch.races.acquired(address);
    T before;
    std::memcpy(&before, at, sizeof(T));
    const T now = after(what, before, of_bits<T>(operand), of_bits<T>(compare));
    std::memcpy(at, &now, sizeof(T));
    if (std::memcmp(&before, &now, sizeof(T)) == 0) launch.nothing_changed(from);
    launch.maybe_yield();
    return bits_of(before);
}

}  // namespace

uint64_t atomic(Atomic what, Number type, void* at, uint64_t operand, uint64_t compare) {
    const void* from = __builtin_return_address(0);
    switch (type) {
        case Number::i32: return apply<int32_t>(what, at, operand, compare, from);
        case Number::u32: return apply<uint32_t>(what, at, operand, compare, from);
        case Number::i64: return apply<int64_t>(what, at, operand, compare, from);
        case Number::u64: return apply<uint64_t>(what, at, operand, compare, from);
        case Number::f32: return apply<float>(what, at, operand, compare, from);
        default: return apply<double>(what, at, operand, compare, from);
    }
}

}  // namespace emu
