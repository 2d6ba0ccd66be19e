// What kernels call in the emulator. Plain declarations: the emulator itself includes no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emu {

struct Index {
    unsigned x, y, z;
};

#define EMU_OWN __attribute__((visibility("hidden")))

// Where the calling thread is. They stay the same as long as it runs.
EMU_OWN __attribute__((const)) Index thread_index();
EMU_OWN __attribute__((const)) Index block_index();
EMU_OWN __attribute__((const)) Index block_size();
EMU_OWN __attribute__((const)) Index grid_size();
EMU_OWN __attribute__((const)) void* dynamic_shared();

[[noreturn]] EMU_OWN void failed_assertion(const char* condition, const char* message, const char* file, int line);
[[noreturn]] EMU_OWN void trap();

enum class Reduce { none, any, all, count };
EMU_OWN int block_barrier(Reduce how, bool value, const char* file, int line);
EMU_OWN void named_barrier(int id, int threads);
EMU_OWN void warp_barrier(uint32_t mask);

enum class Shuffle { index, up, down, exclusive };
EMU_OWN uint64_t shuffle(Shuffle how, uint32_t mask, uint64_t value, int operand, int width);
EMU_OWN uint32_t ballot(uint32_t mask, bool value);
EMU_OWN uint32_t match_any(uint32_t mask, uint64_t value);
enum class WarpReduce { add, min_signed, min_unsigned, max_signed, max_unsigned, bit_and, bit_or, bit_xor };
EMU_OWN uint32_t warp_reduce(WarpReduce how, uint32_t mask, uint32_t value);

EMU_OWN void copy_async(void* to_shared, const void* from_global, int bytes, bool valid);
EMU_OWN void copy_async_commit();
EMU_OWN void copy_async_wait(int groups_left);

enum class Operand { bf16, f16, e4m3 };
EMU_OWN void mma_float(Operand kind, float* d, const uint32_t* a, const uint32_t* b, const float* c);
EMU_OWN void mma_int(int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c);
EMU_OWN void ldmatrix_rows(uint32_t* out, int matrices, bool transposed, const void* row);

// Reads and writes 4 or 8 bytes in one step, as seen by all threads.
enum class Atomic { add, min, max, bit_and, bit_or, bit_xor, exchange, compare_exchange, increment, decrement };
enum class Number { i32, u32, i64, u64, f32, f64 };
EMU_OWN uint64_t atomic(Atomic what, Number type, void* at, uint64_t operand, uint64_t compare);
EMU_OWN void fence();

EMU_OWN void copy_bytes(void* to, const void* from, size_t bytes);
EMU_OWN void set_bytes(void* to, int value, size_t bytes);

// A value's bits, widened to 64. Eight bytes at most.
template <typename T> inline uint64_t bits_of(T value) {
    static_assert(sizeof(T) <= 8, "warp functions exchange at most eight bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <typename T> inline T of_bits(uint64_t bits) {
    T value;
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}

// The operands go through arrays of their own, so that a kernel's accumulators may stay in registers.
inline void mma(Operand kind, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4]) {
    const uint32_t left[4] = {a[0], a[1], a[2], a[3]}, right[2] = {b[0], b[1]};
    const float before[4] = {c[0], c[1], c[2], c[3]};
    float after[4];
    mma_float(kind, after, left, right, before);
    for (int i = 0; i < 4; i++) d[i] = after[i];
}

inline void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const int32_t (&c)[4]) {
    const uint32_t left[4] = {a[0], a[1], a[2], a[3]}, right[2] = {b[0], b[1]};
    const int32_t before[4] = {c[0], c[1], c[2], c[3]};
    int32_t after[4];
    mma_int(after, left, right, before);
    for (int i = 0; i < 4; i++) d[i] = after[i];
}

template <int N> inline void ldmatrix(uint32_t (&r)[N], int matrices, bool transposed, const void* row) {
    uint32_t out[N];
    ldmatrix_rows(out, matrices, transposed, row);
    for (int i = 0; i < N; i++) r[i] = out[i];
}

}  // namespace emu
