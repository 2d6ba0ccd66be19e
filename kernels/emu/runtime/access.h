// Every access of a kernel to memory passes here, before it happens: the compiler calls in at each (its
// instrumentation for thread sanitizers, with these functions in the sanitizer's place), and so do the emulator's own
// functions that touch memory on a kernel's behalf.
#pragma once

#include <cstddef>

#include "races.h"

namespace emu {

class Launch;

void access_begins(Launch& launch);
void access_ends();
void forget_shared_accesses();

// Ends the launch with a message if the running thread may not do this.
void check_access(const void* at, size_t bytes, Access how, const void* instruction);

// Bounds only: what a volatile read sees may be written at the same time.
void check_volatile_read(const void* at, size_t bytes, const void* instruction);

// As a write, and until `landed` any access to these bytes of shared memory is an error.
void begin_flight(void* to_shared, size_t bytes, const void* instruction);
void landed(void* to_shared, size_t bytes);

bool is_shared(const void* at);

}  // namespace emu
