#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace emu {

#ifdef EMU_ASSEMBLY_SWITCH

// System V ABI: the callee keeps rbx, rbp and r12 to r15; everything else is the caller's to save.
extern "C" __attribute__((visibility("hidden"))) void plimsoll_emu_switch(void** from, void* to);
asm(R"(
.text
.globl plimsoll_emu_switch
.hidden plimsoll_emu_switch
.type plimsoll_emu_switch, @function
plimsoll_emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size plimsoll_emu_switch, . - plimsoll_emu_switch
.section .note.GNU-stack, "", @progbits
.text
)");

void prepare(Context& context, char* stack, size_t stack_bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + stack_bytes) & ~uintptr_t(15));
    *--top = nullptr;  // where entry would return to; also aligns the stack as a call does
    *--top = reinterpret_cast<void*>(entry);
    top -= 6;
    std::memset(top, 0, 6 * sizeof(void*));
    context.stack_pointer = top;
}

void switch_context(Context& from, Context& to) { plimsoll_emu_switch(&from.stack_pointer, to.stack_pointer); }

#else

void prepare(Context& context, char* stack, size_t stack_bytes, void (*entry)()) {
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = stack;
    context.saved.uc_stack.ss_size = stack_bytes;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.saved, &to.saved); }

#endif

namespace {

// Reserved once for each host thread; only pages that are used take memory.
struct Stacks {
    char* base;
    size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));

    Stacks() {
        void* at = mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (at == MAP_FAILED) throw std::bad_alloc();
        base = static_cast<char*>(at);
        for (size_t i = 0; i < MOST_THREADS; i++) mprotect(base + i * (STACK_BYTES + guard), guard, PROT_NONE);
    }
    ~Stacks() { munmap(base, bytes()); }
    size_t bytes() const { return MOST_THREADS * (STACK_BYTES + guard); }
};

}  // namespace

char* stack_of(size_t thread) {
    static thread_local Stacks stacks;
    return stacks.base + thread * (STACK_BYTES + stacks.guard) + stacks.guard;
}

}  // namespace emu
