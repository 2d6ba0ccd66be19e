// 16-byte accesses, and copies from global to shared memory that go on while the thread computes.
#pragma once

// Sixteen bytes in registers: 8 bf16, 4 float or 16 fp8.
struct alignas(16) Vec16 {
    uint32_t words[4];
};

__device__ __forceinline__ Vec16 load16(const void* from) {
    DEVICE_ASSERT(reinterpret_cast<uintptr_t>(from) % 16 == 0, "16-byte loads need an address that is a multiple of 16");
    const uint4 v = *static_cast<const uint4*>(from);
    return {{v.x, v.y, v.z, v.w}};
}

__device__ __forceinline__ void store16(void* to, const Vec16& v) {
    DEVICE_ASSERT(reinterpret_cast<uintptr_t>(to) % 16 == 0, "16-byte stores need an address that is a multiple of 16");
    *static_cast<uint4*>(to) = make_uint4(v.words[0], v.words[1], v.words[2], v.words[3]);
}

// For weights and other data that a kernel reads once and nobody writes meanwhile: not kept in L1, first to leave L2.
__device__ __forceinline__ Vec16 load16_once(const void* from) {
#ifdef __CUDACC__
    Vec16 v;
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
        : "=r"(v.words[0]), "=r"(v.words[1]), "=r"(v.words[2]), "=r"(v.words[3])
        : "l"(from), "l"(policy));
    return v;
#else
    return load16(from);
#endif
}

// Read-only for the whole launch, and read by many blocks.
__device__ __forceinline__ Vec16 load16_readonly(const void* from) {
#ifdef __CUDACC__
    const uint4 v = __ldg(static_cast<const uint4*>(from));
    return {{v.x, v.y, v.z, v.w}};
#else
    return load16(from);
#endif
}

// The 8 bf16 in a Vec16.
__device__ __forceinline__ void unpack8_bf16(const Vec16& v, float (&out)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 pair = unpack_bf16(v.words[i]);
        out[2 * i] = pair.x;
        out[2 * i + 1] = pair.y;
    }
}

__device__ __forceinline__ Vec16 pack8_bf16(const float (&in)[8]) {
    Vec16 v;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v.words[i] = pack_bf16(in[2 * i], in[2 * i + 1]);
    }
    return v;
}

// The 16 fp8 in a Vec16.
__device__ __forceinline__ void unpack16_fp8(const Vec16& v, float (&out)[16]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const __nv_fp8x2_storage_t pair = static_cast<__nv_fp8x2_storage_t>(v.words[i / 2] >> (16 * (i % 2)));
        const float2 f = __half22float2(__half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3)));
        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}

// Begins to copy 16 bytes to shared memory; with `valid` false, to write 16 zero bytes there, and `from` is not read.
// Both addresses are aligned to 16. They land once a cp_async_wait says so, for this thread; for others after a barrier.
__device__ __forceinline__ void cp_async_16(void* to_shared, const void* from_global, bool valid = true) {
#ifdef __CUDACC__
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(to_shared));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from_global), "r"(bytes) : "memory");
#else
    emu::copy_async(to_shared, from_global, 16, valid);
#endif
}

// Closes the group of copies begun since the last commit.
__device__ __forceinline__ void cp_async_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emu::copy_async_commit();
#endif
}

// Waits until at most the latest N groups of this thread are still under way.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#else
    emu::copy_async_wait(N);
#endif
}
