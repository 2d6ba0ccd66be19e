// cp.async: copies land as late as the waits allow, and until then what they overwrite is poison.
#include <cstring>

#include "access.h"
#include "launch.h"

namespace emu {

void copy_async(void* to, const void* from, int bytes, bool valid) {
    Launch& launch = here();
    const void* at = __builtin_return_address(0);
    const size_t size = size_t(bytes);
    if (reinterpret_cast<uintptr_t>(to) % size || (valid && reinterpret_cast<uintptr_t>(from) % size)) {
        launch.fault("cp_async_16: both addresses must be multiples of 16", at);
    }
    begin_flight(to, size, at);
    if (valid) check_access(from, size, Access::read, at);
    std::memset(to, 0xFF, size);
    Thread& me = *launch.running;
    me.copies.push_back({to, from, bytes, valid, me.group});
}

void copy_async_commit() { here().running->group++; }

void copy_async_wait(int groups_left) {
    Launch& launch = here();
    Thread& me = *launch.running;
    size_t kept = 0;
    for (const AsyncCopy& copy : me.copies) {
        // Groups from me.group - groups_left on may go on; a copy that was not committed is in group me.group.
        if (copy.group + unsigned(groups_left) >= me.group) {
            me.copies[kept++] = copy;
            continue;
        }
        if (copy.valid) {
            std::memcpy(copy.to, copy.from, size_t(copy.bytes));
        } else {
            std::memset(copy.to, 0, size_t(copy.bytes));
        }
        landed(copy.to, size_t(copy.bytes));
    }
    me.copies.resize(kept);
}

}  // namespace emu
