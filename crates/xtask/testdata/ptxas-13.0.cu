// What testdata/ptxas-13.0.txt was captured from: a plain kernel, one with static shared memory, one that spills, one
// with a stack frame, and a device function that is not inlined.
__device__ __noinline__ float twice(float x) { return x + x * x; }

extern "C" __global__ void plain(float* x) { x[threadIdx.x] = twice(x[threadIdx.x]); }

extern "C" __global__ void __launch_bounds__(256) shared_f32(float* x) {
    __shared__ float tile[256];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[255 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(1024, 2) spills(float* x) {
    float a[48];
#pragma unroll
    for (int i = 0; i < 48; i++) a[i] = x[i * 1024 + threadIdx.x];
    for (int r = 0; r < 100; r++) {
#pragma unroll
        for (int i = 0; i < 48; i++) a[i] = a[i] * a[(i + 7) % 48] + x[r];
    }
#pragma unroll
    for (int i = 0; i < 48; i++) x[i * 1024 + threadIdx.x] = a[i];
}

extern "C" __global__ void indexed(float* x, int n) {
    float a[16];
    for (int i = 0; i < 16; i++) a[i] = x[i];
    for (int i = 0; i < n; i++) a[(i * n) % 16] += a[i % 16];
    x[threadIdx.x] = a[n % 16];
}
