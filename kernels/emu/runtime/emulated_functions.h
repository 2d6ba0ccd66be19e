// CUDA's built-in functions, by their names in the CUDA C++ Programming Guide and Math API. Part of emulated_device.h.
#pragma once

// ---- Barriers and fences

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    emu::block_barrier(emu::Reduce::none, false, file, line);
}

inline int __syncthreads_or(int value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return emu::block_barrier(emu::Reduce::any, value != 0, file, line);
}

inline int __syncthreads_and(int value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return emu::block_barrier(emu::Reduce::all, value != 0, file, line);
}

inline int __syncthreads_count(int value, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return emu::block_barrier(emu::Reduce::count, value != 0, file, line);
}

#define __syncwarp(...) emu::warp_barrier(emu::mask_of(__VA_ARGS__))

namespace emu {
inline uint32_t mask_of(uint32_t mask = 0xffffffffu) { return mask; }
}  // namespace emu

#define __threadfence() emu::fence()
#define __threadfence_block() emu::fence()
#define __threadfence_system() emu::fence()
#define __trap() emu::trap()

// ---- Warps. Macros, so that a message can name the line of the kernel that calls.

#define __shfl_sync(mask, value, ...) emu::shuffle_typed(emu::Shuffle::index, mask, value, __VA_ARGS__)
#define __shfl_up_sync(mask, value, ...) emu::shuffle_typed(emu::Shuffle::up, mask, value, __VA_ARGS__)
#define __shfl_down_sync(mask, value, ...) emu::shuffle_typed(emu::Shuffle::down, mask, value, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, ...) emu::shuffle_typed(emu::Shuffle::exclusive, mask, value, __VA_ARGS__)

namespace emu {
template <typename T>
__forceinline__ T shuffle_typed(Shuffle how, uint32_t mask, T value, int operand, int width = 32) {
    return of_bits<T>(shuffle(how, mask, bits_of(value), operand, width));
}
}  // namespace emu

__forceinline__ unsigned __ballot_sync(unsigned mask, int value) { return emu::ballot(mask, value != 0); }
__forceinline__ int __any_sync(unsigned mask, int value) { return emu::ballot(mask, value != 0) != 0; }
__forceinline__ int __all_sync(unsigned mask, int value) { return emu::ballot(mask, value == 0) == 0; }

template <typename T> __forceinline__ unsigned __match_any_sync(unsigned mask, T value) {
    return emu::match_any(mask, emu::bits_of(value));
}

template <typename T> __forceinline__ unsigned __match_all_sync(unsigned mask, T value, int* same) {
    const unsigned found = emu::match_any(mask, emu::bits_of(value));
    *same = emu::ballot(mask, found != mask) == 0;
    return *same ? mask : 0;
}

__forceinline__ unsigned __reduce_add_sync(unsigned mask, unsigned v) {
    return emu::warp_reduce(emu::WarpReduce::add, mask, v);
}
__forceinline__ int __reduce_add_sync(unsigned mask, int v) {
    return static_cast<int>(emu::warp_reduce(emu::WarpReduce::add, mask, static_cast<unsigned>(v)));
}
__forceinline__ unsigned __reduce_min_sync(unsigned mask, unsigned v) {
    return emu::warp_reduce(emu::WarpReduce::min_unsigned, mask, v);
}
__forceinline__ int __reduce_min_sync(unsigned mask, int v) {
    return static_cast<int>(emu::warp_reduce(emu::WarpReduce::min_signed, mask, static_cast<unsigned>(v)));
}
__forceinline__ unsigned __reduce_max_sync(unsigned mask, unsigned v) {
    return emu::warp_reduce(emu::WarpReduce::max_unsigned, mask, v);
}
__forceinline__ int __reduce_max_sync(unsigned mask, int v) {
    return static_cast<int>(emu::warp_reduce(emu::WarpReduce::max_signed, mask, static_cast<unsigned>(v)));
}
__forceinline__ unsigned __reduce_and_sync(unsigned mask, unsigned v) {
    return emu::warp_reduce(emu::WarpReduce::bit_and, mask, v);
}
__forceinline__ unsigned __reduce_or_sync(unsigned mask, unsigned v) {
    return emu::warp_reduce(emu::WarpReduce::bit_or, mask, v);
}
__forceinline__ unsigned __reduce_xor_sync(unsigned mask, unsigned v) {
    return emu::warp_reduce(emu::WarpReduce::bit_xor, mask, v);
}

// ---- Atomics. Floats add in the order in which threads come, which differs from seed to seed.

namespace emu {
template <typename T> struct NumberOf;
template <> struct NumberOf<int> { static constexpr Number value = Number::i32; };
template <> struct NumberOf<unsigned> { static constexpr Number value = Number::u32; };
template <> struct NumberOf<long> { static constexpr Number value = Number::i64; };
template <> struct NumberOf<unsigned long> { static constexpr Number value = Number::u64; };
template <> struct NumberOf<long long> { static constexpr Number value = Number::i64; };
template <> struct NumberOf<unsigned long long> { static constexpr Number value = Number::u64; };
template <> struct NumberOf<float> { static constexpr Number value = Number::f32; };
template <> struct NumberOf<double> { static constexpr Number value = Number::f64; };

template <typename T> struct Same { using type = T; };
template <typename T> using Operand1 = typename Same<T>::type;

template <typename T> __forceinline__ T atomic_typed(Atomic what, T* at, T operand, T compare = T()) {
    return of_bits<T>(atomic(what, NumberOf<T>::value, at, bits_of(operand), bits_of(compare)));
}
}  // namespace emu

#define EMU_ATOMIC(name, what)                                                       \
    template <typename T> __forceinline__ T name(T* at, emu::Operand1<T> operand) { \
        return emu::atomic_typed(emu::Atomic::what, at, operand);                    \
    }
EMU_ATOMIC(atomicAdd, add)
EMU_ATOMIC(atomicMin, min)
EMU_ATOMIC(atomicMax, max)
EMU_ATOMIC(atomicAnd, bit_and)
EMU_ATOMIC(atomicOr, bit_or)
EMU_ATOMIC(atomicXor, bit_xor)
EMU_ATOMIC(atomicExch, exchange)
EMU_ATOMIC(atomicInc, increment)
EMU_ATOMIC(atomicDec, decrement)
#undef EMU_ATOMIC

template <typename T> __forceinline__ T atomicSub(T* at, emu::Operand1<T> operand) {
    return emu::atomic_typed(emu::Atomic::add, at, static_cast<T>(T(0) - operand));
}

template <typename T> __forceinline__ T atomicCAS(T* at, emu::Operand1<T> compare, emu::Operand1<T> value) {
    return emu::atomic_typed(emu::Atomic::compare_exchange, at, value, compare);
}

// ---- Memory

template <typename T> __forceinline__ T __ldg(const T* at) { return *at; }
template <typename T> __forceinline__ T __ldcg(const T* at) { return *at; }
template <typename T> __forceinline__ T __ldca(const T* at) { return *at; }
template <typename T> __forceinline__ T __ldcs(const T* at) { return *at; }
template <typename T> __forceinline__ T __ldcv(const T* at) { return *static_cast<const volatile T*>(at); }
template <typename T> __forceinline__ void __stcg(T* at, T value) { *at = value; }
template <typename T> __forceinline__ void __stcs(T* at, T value) { *at = value; }
template <typename T> __forceinline__ void __stwt(T* at, T value) { *at = value; }

// ---- Bits

#define EMU_INLINE static inline __attribute__((always_inline, unused))

EMU_INLINE unsigned __float_as_uint(float x) { return emu::of_bits<unsigned>(emu::bits_of(x)); }
EMU_INLINE int __float_as_int(float x) { return emu::of_bits<int>(emu::bits_of(x)); }
EMU_INLINE float __uint_as_float(unsigned x) { return emu::of_bits<float>(emu::bits_of(x)); }
EMU_INLINE float __int_as_float(int x) { return emu::of_bits<float>(emu::bits_of(x)); }
EMU_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
EMU_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
EMU_INLINE int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
EMU_INLINE int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
EMU_INLINE unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t(a) * b) >> 32); }
EMU_INLINE int __mulhi(int a, int b) { return static_cast<int>((int64_t(a) * b) >> 32); }
EMU_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

EMU_INLINE unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= ((x >> i) & 1u) << (31 - i);
    return reversed;
}

EMU_INLINE unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    const uint64_t both = (uint64_t(high) << 32) | low;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= static_cast<unsigned>((both >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return out;
}

EMU_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>(((uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}

EMU_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return static_cast<unsigned>((uint64_t(high) << 32 | low) >> (shift & 31));
}

EMU_INLINE int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
    return c;
}

// ---- Arithmetic. The fast functions are exact here; on a GPU they are off by a few units in the last place.

EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE float __fsqrt_rn(float x) { return sqrtf(x); }
EMU_INLINE float __frcp_rn(float x) { return 1.0f / x; }
EMU_INLINE float __fdividef(float a, float b) { return a / b; }
EMU_INLINE float __fdiv_rn(float a, float b) { return a / b; }
EMU_INLINE float __fadd_rn(float a, float b) { return a + b; }
EMU_INLINE float __fsub_rn(float a, float b) { return a - b; }
EMU_INLINE float __fmul_rn(float a, float b) { return a * b; }
EMU_INLINE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
EMU_INLINE float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
EMU_INLINE int __float2int_rn(float x) { return static_cast<int>(rintf(x)); }
EMU_INLINE int __float2int_rz(float x) { return static_cast<int>(x); }
EMU_INLINE unsigned __float2uint_rn(float x) { return static_cast<unsigned>(rintf(x)); }
EMU_INLINE float __int2float_rn(int x) { return static_cast<float>(x); }
EMU_INLINE float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
EMU_INLINE float emu_exp10(float x) { return powf(10.0f, x); }
// glibc declares some of these names for itself.
#define __expf(x) expf(x)
#define __exp10f(x) emu_exp10(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __sincosf(x, s, c) (void)(*(s) = sinf(x), *(c) = cosf(x))

#define EMU_MIN_MAX(T)                                        \
    EMU_INLINE T min(T a, T b) { return b < a ? b : a; }      \
    EMU_INLINE T max(T a, T b) { return a < b ? b : a; }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
EMU_INLINE unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
EMU_INLINE unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
EMU_INLINE unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
EMU_INLINE unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
EMU_INLINE float min(float a, float b) { return fminf(a, b); }
EMU_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMU_INLINE double min(double a, double b) { return fmin(a, b); }
EMU_INLINE double max(double a, double b) { return fmax(a, b); }

EMU_INLINE long long clock64() { return 0; }
EMU_INLINE void __nanosleep(unsigned) {}

// Copies of runs of bytes are checked as the accesses that they are. Small fixed sizes are left to the compiler, which
// makes plain, checked accesses of them.
#define memcpy(to, from, bytes) \
    (__builtin_constant_p(bytes) && (bytes) <= 16 ? __builtin_memcpy(to, from, bytes) : emu::memcpy_checked(to, from, bytes))
#define memset(to, value, bytes) emu::memset_checked(to, value, bytes)
namespace emu {
inline void* memcpy_checked(void* to, const void* from, size_t bytes) {
    copy_bytes(to, from, bytes);
    return to;
}
inline void* memset_checked(void* to, int value, size_t bytes) {
    set_bytes(to, value, bytes);
    return to;
}
}  // namespace emu
