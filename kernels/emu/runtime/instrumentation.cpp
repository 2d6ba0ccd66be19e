// What -fsanitize=thread makes the compiler call at each access of a kernel. No sanitizer is linked.
#include <cstdint>
#include <cstring>

#include "access.h"
#include "launch.h"

using emu::Access;

namespace {

void misaligned(const void* at, size_t bytes, const void* instruction) {
    emu::Launch* launch = emu::current_launch();
    if (!launch || !launch->running) return;
    launch->fault("misaligned: accesses " + std::to_string(bytes) + " bytes " +
                      launch->memory.describe(reinterpret_cast<uintptr_t>(at)) + ", an address that is not a multiple of " +
                      std::to_string(bytes),
                  instruction);
}

inline void plain(const void* at, size_t bytes, Access how, const void* instruction) {
    if (reinterpret_cast<uintptr_t>(at) % bytes != 0) misaligned(at, bytes, instruction);
    emu::check_access(at, bytes, how, instruction);
}

// Threads that poll or publish through volatile accesses do so on purpose.
void volatile_read(const void* at, size_t bytes, const void* instruction) {
    emu::Launch* launch = emu::current_launch();
    if (!launch || !launch->running) return;
    emu::check_volatile_read(at, bytes, instruction);
    launch->races.acquired(reinterpret_cast<uintptr_t>(at));
    launch->nothing_changed(instruction);
    launch->maybe_yield();
}

void volatile_write(const void* at, size_t bytes, const void* instruction) {
    emu::Launch* launch = emu::current_launch();
    if (!launch || !launch->running) return;
    emu::check_access(at, bytes, Access::atomic, instruction);
    const emu::Thread& me = *launch->running;
    if (me.fenced) launch->races.released(reinterpret_cast<uintptr_t>(at), me.number, me.fenced);
}

}  // namespace

#define HERE __builtin_return_address(0)
#define SIZED(n)                                                                                          \
    void __tsan_read##n(void* at) { plain(at, n, Access::read, HERE); }                                   \
    void __tsan_write##n(void* at) { plain(at, n, Access::write, HERE); }                                 \
    void __tsan_read_write##n(void* at) {                                                                 \
        plain(at, n, Access::read, HERE);                                                                 \
        plain(at, n, Access::write, HERE);                                                                \
    }                                                                                                     \
    void __tsan_unaligned_read##n(void* at) { emu::check_access(at, n, Access::read, HERE); }             \
    void __tsan_unaligned_write##n(void* at) { emu::check_access(at, n, Access::write, HERE); }           \
    void __tsan_volatile_read##n(void* at) { volatile_read(at, n, HERE); }                                \
    void __tsan_volatile_write##n(void* at) { volatile_write(at, n, HERE); }                              \
    void __tsan_unaligned_volatile_read##n(void* at) { volatile_read(at, n, HERE); }                      \
    void __tsan_unaligned_volatile_write##n(void* at) { volatile_write(at, n, HERE); }

extern "C" {
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
void __tsan_read_range(void* at, size_t bytes) { emu::check_access(at, bytes, Access::read, HERE); }
void __tsan_write_range(void* at, size_t bytes) { emu::check_access(at, bytes, Access::write, HERE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    emu::copy_bytes(to, from, bytes);
    return to;
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    emu::copy_bytes(to, from, bytes);
    return to;
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    emu::set_bytes(to, value, bytes);
    return to;
}
}

namespace emu {

void copy_bytes(void* to, const void* from, size_t bytes) {
    check_access(from, bytes, Access::read, HERE);
    check_access(to, bytes, Access::write, HERE);
    std::memmove(to, from, bytes);
}

void set_bytes(void* to, int value, size_t bytes) {
    check_access(to, bytes, Access::write, HERE);
    std::memset(to, value, bytes);
}

}  // namespace emu
