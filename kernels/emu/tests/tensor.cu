// Products by one warp: each lane fills its fragments from plain matrices as the PTX ISA lays them out, either straight
// from global memory or through shared memory and ldmatrix.
#include "device.cuh"

// The fragments of a (16 rows of `row_bytes` bytes) and b (8 columns, stored as rows of as many bytes).
__device__ __forceinline__ void load_fragments(uint32_t (&a)[4], uint32_t (&b)[2], const unsigned char* left,
                                               const unsigned char* right) {
    const int group = lane_id() / 4, first = lane_id() % 4 * 4;  // bytes: 2 of 16 bits, or 4 of 8 bits
    for (int r = 0; r < 4; r++) {
        memcpy(&a[r], left + (group + 8 * (r & 1)) * 32 + first + 16 * (r >> 1), 4);
    }
    for (int r = 0; r < 2; r++) memcpy(&b[r], right + group * 32 + first + 16 * r, 4);
}

template <typename T> __device__ __forceinline__ void store_fragment(T* out, const T (&d)[4]) {
    for (int i = 0; i < 4; i++) out[(lane_id() / 4 + 8 * (i >> 1)) * 8 + lane_id() % 4 * 2 + (i & 1)] = d[i];
}

extern "C" __global__ void selftest_mma_bf16(float* out, const unsigned char* left, const unsigned char* right, float initial) {
    uint32_t a[4], b[2];
    load_fragments(a, b, left, right);
    float d[4] = {initial, initial, initial, initial};
    mma_m16n8k16_bf16(d, a, b, d);
    store_fragment(out, d);
}

extern "C" __global__ void selftest_mma_f16(float* out, const unsigned char* left, const unsigned char* right, float initial) {
    uint32_t a[4], b[2];
    load_fragments(a, b, left, right);
    float d[4] = {initial, initial, initial, initial};
    mma_m16n8k16_f16(d, a, b, d);
    store_fragment(out, d);
}

extern "C" __global__ void selftest_mma_e4m3(float* out, const unsigned char* left, const unsigned char* right, float initial) {
    uint32_t a[4], b[2];
    load_fragments(a, b, left, right);
    float d[4] = {initial, initial, initial, initial};
    mma_m16n8k32_e4m3(d, a, b, d);
    store_fragment(out, d);
}

extern "C" __global__ void selftest_mma_s8(int* out, const unsigned char* left, const unsigned char* right, int initial) {
    uint32_t a[4], b[2];
    load_fragments(a, b, left, right);
    int d[4] = {initial, initial, initial, initial};
    mma_m16n8k32_s8(d, a, b, d);
    store_fragment(out, d);
}

// As selftest_mma_bf16, the operands through ldmatrix: a by rows; b by columns (as it is stored) when `b_by_rows` is 0,
// else b is stored as 16 rows of 8, and transposed on the way.
extern "C" __global__ void selftest_ldmatrix(float* out, const unsigned char* left, const unsigned char* right, int b_by_rows, int pairs) {
    __shared__ __align__(16) bf16 sa[16][16];
    __shared__ __align__(16) bf16 sb[16 * 8];
    memcpy(&sa[0][0] + 8 * lane_id(), left + 16 * lane_id(), 16);
    if (lane_id() < 16) memcpy(sb + 8 * lane_id(), right + 16 * lane_id(), 16);
    __syncwarp();
    uint32_t a[4], b[2], b4[4];
    ldmatrix_x4(a, &sa[lane_id() % 16][lane_id() / 16 * 8]);
    const bf16* column = &sb[lane_id() % 8 * 16 + lane_id() / 8 % 2 * 8];
    const bf16* row = &sb[lane_id() % 16 * 8];
    if (pairs) {
        if (b_by_rows) {
            ldmatrix_x2_trans(b, row);
        } else {
            ldmatrix_x2(b, column);
        }
    } else {
        if (b_by_rows) {
            ldmatrix_x4_trans(b4, row);
        } else {
            ldmatrix_x4(b4, column);
        }
        b[0] = b4[0];
        b[1] = b4[1];
        if (b4[2] != b4[0] || b4[3] != b4[1]) b[0] = 0xffffffffu;
    }
    float d[4] = {};
    mma_m16n8k16_bf16(d, a, b, d);
    store_fragment(out, d);
}
