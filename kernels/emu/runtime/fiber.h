// Switching between stacks on one host thread: a CUDA thread is a stack of its own. Knows nothing of kernels.
#pragma once

#include <cstddef>

// x86-64 switches by a few instructions; other machines, or EMU_UCONTEXT, by the C library's slower ucontext.
#if defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_ASSEMBLY_SWITCH
#else
#include <ucontext.h>
#endif

namespace emu {

struct Context {
#ifdef EMU_ASSEMBLY_SWITCH
    void* stack_pointer = nullptr;
#else
    ucontext_t saved;
#endif
};

// Makes `context` start `entry` on the given stack when first switched to. `entry` must never return.
void prepare(Context& context, char* stack, size_t stack_bytes, void (*entry)());

// Saves where the caller is in `from` and goes on where `to` was saved or prepared.
void switch_context(Context& from, Context& to);

constexpr size_t STACK_BYTES = 64 << 10;
constexpr size_t MOST_THREADS = 1024;

// The calling host thread's stacks, one for each CUDA thread of a block, with a page between them that faults.
char* stack_of(size_t thread);

}  // namespace emu
