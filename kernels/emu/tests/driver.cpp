// A client of the stand-in driver, as cudarc is one: opens the libraries by name, looks functions up, and calls them.
// Exits with 0 if all went as the CUDA driver API promises. Built and started by driver.rs.
#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using Ptr = unsigned long long;

static int failures = 0;

#define EXPECT(condition)                                                        \
    do {                                                                         \
        if (!(condition)) {                                                      \
            std::printf("driver.cpp:%d: not so: %s\n", __LINE__, #condition);    \
            failures++;                                                          \
        }                                                                        \
    } while (0)

static void* library(const char* name) {
    void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        std::printf("%s\n", dlerror());
        std::exit(2);
    }
    return handle;
}

// Calls a function of a library; arguments must have the parameters' types.
template <typename... A> static int call(void* from, const char* name, A... arguments) {
    void* symbol = dlsym(from, name);
    if (!symbol) {
        std::printf("no symbol %s\n", name);
        std::exit(2);
    }
    return reinterpret_cast<int (*)(A...)>(symbol)(arguments...);
}

static void *cuda, *blas, *lt, *rand_library, *stream;

template <typename... A> static int cu(const char* name, A... arguments) { return call(cuda, name, arguments...); }

static Ptr allocate(size_t bytes) {
    Ptr at = 0;
    EXPECT(cu("cuMemAllocAsync", &at, bytes, stream) == 0);
    return at;
}

template <typename T> static Ptr upload(const std::vector<T>& values) {
    const Ptr at = allocate(values.size() * sizeof(T));
    EXPECT(cu("cuMemcpyHtoDAsync_v2", at, static_cast<const void*>(values.data()), values.size() * sizeof(T), stream) == 0);
    return at;
}

static std::vector<float> download(Ptr at, size_t count) {
    std::vector<float> values(count);
    EXPECT(cu("cuMemcpyDtoHAsync_v2", static_cast<void*>(values.data()), at, count * 4, stream) == 0);
    return values;
}

static int launch_double(void* function, Ptr out, Ptr in, int count) {
    void* arguments[] = {&out, &in, &count};
    const unsigned blocks = static_cast<unsigned>(count + 255) / 256;
    return cu("cuLaunchKernel", function, blocks, 1u, 1u, 256u, 1u, 1u, 0u, stream, static_cast<void**>(arguments),
              static_cast<void**>(nullptr));
}

static void* kernel(const char* name) {
    void *module = nullptr, *function = nullptr;
    EXPECT(cu("cuModuleLoadData", &module, static_cast<const void*>("image")) == 0);
    EXPECT(cu("cuModuleGetFunction", &function, module, name) == 0);
    return function;
}

static void opens_one_device() {
    EXPECT(cu("cuInit", 0u) == 0);
    int count = 0, major = 0, device = -1;
    EXPECT(cu("cuDeviceGetCount", &count) == 0 && count == 1);
    EXPECT(cu("cuDeviceGet", &device, 0) == 0 && device == 0);
    EXPECT(cu("cuDeviceGet", &device, 1) == 101);
    EXPECT(cu("cuDeviceGetAttribute", &major, 75, 0) == 0 && major == 9);
    size_t free_bytes = 0, total = 0;
    EXPECT(cu("cuMemGetInfo_v2", &free_bytes, &total) == 0 && total == size_t(64) << 20 && free_bytes == total);
    EXPECT(cu("cuStreamCreate", &stream, 1u) == 0);
    Ptr too_much = 0;
    EXPECT(cu("cuMemAllocAsync", &too_much, size_t(65) << 20, stream) == 2);
}

static void copies_and_launches() {
    std::vector<float> values(1000);
    for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i);
    const Ptr in = upload(values), out = allocate(4000);
    // Pageable memory was read before the call returned.
    values.assign(1000, 0.0f);
    EXPECT(launch_double(kernel("selftest_double"), out, in, 1000) == 0);
    const std::vector<float> found = download(out, 1000);
    for (size_t i = 0; i < found.size(); i++) EXPECT(found[i] == 2.0f * static_cast<float>(i));
    EXPECT(cu("cuMemcpyHtoDAsync_v2", out, static_cast<const void*>(values.data()), size_t(4001), stream) == 1);
    EXPECT(cu("cuMemFreeAsync", in, stream) == 0);
    EXPECT(cu("cuMemFreeAsync", out, stream) == 0);
    EXPECT(cu("cuStreamSynchronize", stream) == 0);
    EXPECT(cu("cuMemcpyDtoD_v2", in, out, size_t(4)) == 1);
}

// With work deferred, a copy to pinned memory lands when it is waited for, and one from there is read then.
static void pinned_copies_are_late(bool deferred) {
    void *pinned = nullptr, *event = nullptr;
    EXPECT(cu("cuMemHostAlloc", &pinned, size_t(16), 0u) == 0);
    EXPECT(cu("cuEventCreate", &event, 2u) == 0);
    float* words = static_cast<float*>(pinned);
    words[0] = 1.0f;
    const Ptr at = allocate(4);
    EXPECT(cu("cuMemcpyHtoDAsync_v2", at, static_cast<const void*>(words), size_t(4), stream) == 0);
    words[0] = 2.0f;
    EXPECT(cu("cuMemcpyDtoHAsync_v2", static_cast<void*>(words + 1), at, size_t(4), stream) == 0);
    EXPECT(cu("cuEventRecord", event, stream) == 0);
    EXPECT(cu("cuEventQuery", event) == (deferred ? 600 : 0));
    EXPECT(std::isnan(words[1]) == deferred);
    EXPECT(cu("cuEventSynchronize", event) == 0);
    EXPECT(words[1] == (deferred ? 2.0f : 1.0f));
    EXPECT(cu("cuEventDestroy_v2", event) == 0);
    EXPECT(cu("cuMemFreeHost", pinned) == 0);
}

static void events_tell_time() {
    void *start = nullptr, *end = nullptr;
    EXPECT(cu("cuEventCreate", &start, 0u) == 0 && cu("cuEventCreate", &end, 0u) == 0);
    const Ptr at = upload(std::vector<float>(1 << 16, 1.0f));
    EXPECT(cu("cuEventRecord", start, stream) == 0);
    EXPECT(launch_double(kernel("selftest_double"), at, at, 1 << 16) == 0);
    EXPECT(cu("cuEventRecord", end, stream) == 0);
    EXPECT(cu("cuEventSynchronize", end) == 0);
    float milliseconds = -1;
    EXPECT(cu("cuEventElapsedTime_v2", &milliseconds, start, end) == 0 && milliseconds > 0);
}

static void captures_replay() {
    void *graph = nullptr, *exec = nullptr;
    const Ptr in = upload(std::vector<float>{1, 2, 3, 4}), out = upload(std::vector<float>(4, -1.0f));
    void* twice = kernel("selftest_double");
    EXPECT(cu("cuStreamSynchronize", stream) == 0);
    EXPECT(cu("cuStreamBeginCapture_v2", stream, 1) == 0);
    const Ptr between = allocate(16);
    EXPECT(launch_double(twice, between, in, 4) == 0);
    EXPECT(launch_double(twice, out, between, 4) == 0);
    EXPECT(cu("cuMemFreeAsync", between, stream) == 0);
    int status = 0;
    EXPECT(cu("cuStreamIsCapturing", stream, &status) == 0 && status == 1);
    EXPECT(cu("cuStreamEndCapture", stream, &graph) == 0 && graph);
    EXPECT(download(out, 4)[3] == -1.0f);  // recorded, not run
    EXPECT(cu("cuGraphInstantiateWithFlags", &exec, graph, 1ull) == 0);
    EXPECT(cu("cuGraphUpload", exec, stream) == 0);
    EXPECT(cu("cuGraphLaunch", exec, stream) == 0);
    EXPECT(download(out, 4)[3] == 16.0f);
    const std::vector<float> other{5, 6, 7, 8};
    EXPECT(cu("cuMemcpyHtoDAsync_v2", in, static_cast<const void*>(other.data()), size_t(16), stream) == 0);
    EXPECT(cu("cuGraphLaunch", exec, stream) == 0);
    EXPECT(download(out, 4)[0] == 20.0f);
    EXPECT(cu("cuGraphExecDestroy", exec) == 0 && cu("cuGraphDestroy", graph) == 0);
    EXPECT(launch_double(twice, out, in, 4) == 0);
}

// What may not happen while a stream is captured gives the driver's error, and the capture is lost.
static void captures_forbid() {
    const Ptr at = upload(std::vector<float>(4, 0.0f));
    std::vector<float> pageable(4);
    const auto forbidden = [&](int expected, auto work) {
        void* graph = nullptr;
        EXPECT(cu("cuStreamBeginCapture_v2", stream, 0) == 0);
        EXPECT(work() == expected);
        int status = 0;
        EXPECT(cu("cuStreamIsCapturing", stream, &status) == 0 && status == 2);
        EXPECT(cu("cuStreamEndCapture", stream, &graph) == 901 && !graph);
    };
    forbidden(900, [] { return cu("cuStreamSynchronize", stream); });
    forbidden(900, [] { return cu("cuCtxSynchronize"); });
    forbidden(900, [&] { return cu("cuMemcpyDtoH_v2", static_cast<void*>(pageable.data()), at, size_t(16)); });
    forbidden(900, [&] {
        return cu("cuMemcpyHtoDAsync_v2", at, static_cast<const void*>(pageable.data()), size_t(16), stream);
    });
    forbidden(900, [] {
        Ptr fresh = 0;
        return cu("cuMemAlloc_v2", &fresh, size_t(16));
    });
    forbidden(905, [] {
        void *event = nullptr, *other = nullptr;
        EXPECT(cu("cuEventCreate", &event, 0u) == 0 && cu("cuStreamCreate", &other, 1u) == 0);
        EXPECT(cu("cuEventRecord", event, other) == 0);
        return cu("cuStreamWaitEvent", stream, event, 0u);
    });
}

static float to_f32(float value, unsigned char* out) {
    std::memcpy(out, &value, 4);
    return value;
}

static float to_bf16(float value, unsigned char* out) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t high = static_cast<uint16_t>(bits >> 16);
    std::memcpy(out, &high, 2);
    return value;
}

// -3 to 3 in halves have one or two fraction bits.
static float to_e4m3(float value, unsigned char* out) {
    int exponent = 0;
    const float fraction = std::frexp(std::fabs(value), &exponent);
    const int code = value == 0 ? 0 : (exponent - 1 + 7) << 3 | static_cast<int>((fraction * 2 - 1) * 8);
    *out = static_cast<unsigned char>(code | (value < 0 ? 0x80 : 0));
    return value;
}

// y[m, n] = x[m, k] * w[n, k]^T, as row-major callers have it: by columns, y^T = w * x^T.
static void products(int type, float (*narrow)(float, unsigned char*), size_t bytes) {
    const int m = 3, n = 32, k = 48;
    const bool is_fp8 = bytes == 1;
    std::vector<unsigned char> x(m * k * bytes), w(n * k * bytes), narrow_bias(2 * n);
    std::vector<float> wide_x(m * k), wide_w(n * k), bias(n), w_scales(n), x_scales(16);
    for (int i = 0; i < m * k; i++) wide_x[i] = narrow(static_cast<float>(i % 7 - 3), &x[i * bytes]);
    for (int i = 0; i < n * k; i++) wide_w[i] = narrow(static_cast<float>(i % 5) / 2, &w[i * bytes]);
    for (int i = 0; i < n; i++) bias[i] = to_bf16(static_cast<float>(i), &narrow_bias[2 * i]);
    for (int i = 0; i < n; i++) w_scales[i] = 0.25f * static_cast<float>(i % 3 + 1);
    for (int i = 0; i < 16; i++) x_scales[i] = 0.5f * static_cast<float>(i + 1);
    const Ptr on_x = upload(x), on_w = upload(w), on_y = allocate(m * n * 4);
    // fp8 multiplied to f32 has a bias of bf16.
    const Ptr on_bias = is_fp8 ? upload(narrow_bias) : upload(bias);
    const Ptr scale = upload(std::vector<float>{0.5f}), on_w_scales = upload(w_scales), on_x_scales = upload(x_scales);
    void *handle = nullptr, *description = nullptr, *layout_w = nullptr, *layout_x = nullptr, *layout_y = nullptr;
    void* preference = nullptr;
    EXPECT(call(lt, "cublasLtCreate", &handle) == 0);
    EXPECT(call(lt, "cublasLtMatmulDescCreate", &description, 68, 0) == 0);
    const auto set = [&](int which, const void* value, size_t size) {
        EXPECT(call(lt, "cublasLtMatmulDescSetAttribute", description, which, value, size) == 0);
    };
    const int transposed = 1, with_bias = 4, f32 = 0, bf16 = 14, outer = 3;
    set(3, &transposed, 4);
    set(7, &with_bias, 4);
    set(8, &on_bias, 8);
    set(26, is_fp8 ? &bf16 : &f32, 4);
    if (is_fp8) set(17, &scale, 8);
    const auto layout = [&](void** out, int of, uint64_t rows, uint64_t columns) {
        EXPECT(call(lt, "cublasLtMatrixLayoutCreate", out, of, rows, columns, static_cast<int64_t>(rows)) == 0);
    };
    const uint64_t columns = is_fp8 ? 16 : m;  // fp8 comes in sixteens
    layout(&layout_w, type, k, n);
    layout(&layout_x, type, k, columns);
    layout(&layout_y, f32, n, columns);
    EXPECT(call(lt, "cublasLtMatmulPreferenceCreate", &preference) == 0);
    uint64_t results[2 * 12] = {};
    int found = 0;
    EXPECT(call(lt, "cublasLtMatmulAlgoGetHeuristic", handle, description, layout_w, layout_x, layout_y, layout_y, preference,
                2, static_cast<void*>(results), &found) == 0 && found == 2);
    const Ptr padded_x = allocate(16 * k * bytes), padded_y = allocate(16 * n * 4);
    EXPECT(cu("cuMemcpyDtoDAsync_v2", padded_x, on_x, size_t(m * k) * bytes, stream) == 0);
    const Ptr in = is_fp8 ? padded_x : on_x, out = is_fp8 ? padded_y : on_y;
    const float alpha = 1, beta = 0;
    const auto as_pointer = [](Ptr at) { return reinterpret_cast<void*>(at); };
    const auto multiply = [&](uint64_t* algorithm) {
        return call(lt, "cublasLtMatmul", handle, description, static_cast<const void*>(&alpha),
                    static_cast<const void*>(as_pointer(on_w)), layout_w, static_cast<const void*>(as_pointer(in)), layout_x,
                    static_cast<const void*>(&beta), static_cast<const void*>(as_pointer(out)), layout_y, as_pointer(out),
                    layout_y, static_cast<const void*>(algorithm), static_cast<void*>(nullptr), size_t(0), stream);
    };
    const auto expect = [&](auto scale_of) {
        EXPECT(multiply(results) == 0);
        const std::vector<float> y = download(out, m * n);
        for (int i = 0; i < m; i++) {
            for (int j = 0; j < n; j++) {
                float sum = 0;
                for (int l = 0; l < k; l++) sum += wide_x[i * k + l] * wide_w[j * k + l];
                EXPECT(y[i * n + j] == scale_of(i, j) * sum + bias[j]);
            }
        }
    };
    expect([&](int, int) { return is_fp8 ? 0.5f : 1.0f; });
    if (is_fp8) {
        set(31, &outer, 4);
        EXPECT(multiply(results) != 0);  // scales of one kind
        set(32, &outer, 4);
        EXPECT(multiply(results) != 0);  // of x there are none
        set(17, &on_w_scales, 8);
        set(18, &on_x_scales, 8);
        expect([&](int i, int j) { return x_scales[i] * w_scales[j]; });
        set(26, &f32, 4);
        EXPECT(multiply(results) != 0);  // a bias of another type
        set(26, &bf16, 4);
    }
    results[1]++;  // another shape's algorithm
    EXPECT(multiply(results) != 0);
}

static void old_blas_multiplies() {
    void* handle = nullptr;
    EXPECT(call(blas, "cublasCreate_v2", &handle) == 0);
    EXPECT(call(blas, "cublasSetStream_v2", handle, stream) == 0);
    const Ptr a = upload(std::vector<float>{1, 2, 3, 4}), b = upload(std::vector<float>{5, 6, 7, 8}), c = allocate(16);
    const float one = 1, zero = 0;
    const auto at = [](Ptr p) { return reinterpret_cast<const void*>(p); };
    EXPECT(call(blas, "cublasGemmEx", handle, 0, 0, 2, 2, 2, static_cast<const void*>(&one), at(a), 0, 2, at(b), 0, 2,
                static_cast<const void*>(&zero), reinterpret_cast<void*>(c), 0, 2, 68, -1) == 0);
    EXPECT(download(c, 4) == (std::vector<float>{23, 34, 31, 46}));
}

static void numbers_are_random() {
    void* generator = nullptr;
    EXPECT(call(rand_library, "curandCreateGenerator", &generator, 100) == 0);
    EXPECT(call(rand_library, "curandSetPseudoRandomGeneratorSeed", generator, 7ull) == 0);
    EXPECT(call(rand_library, "curandSetStream", generator, stream) == 0);
    const Ptr at = allocate(40000);
    EXPECT(call(rand_library, "curandGenerateNormal", generator, reinterpret_cast<float*>(at), size_t(10000), 1.0f, 2.0f) == 0);
    double sum = 0, squares = 0;
    for (float value : download(at, 10000)) {
        sum += value;
        squares += (value - 1.0) * (value - 1.0);
    }
    EXPECT(std::fabs(sum / 10000 - 1) < 0.1 && std::fabs(squares / 10000 - 4) < 0.3);
}

// Last: after a failed kernel the device is lost, as a real one is.
static void failures_are_told() {
    const Ptr small = upload(std::vector<float>(4, 0.0f));
    EXPECT(launch_double(kernel("ucopy_f32"), small, small, 4) == 719);
    const int launched = launch_double(kernel("selftest_double"), small, small, 5);
    const int waited = cu("cuStreamSynchronize", stream);
    EXPECT((launched == 0 || launched == 719) && waited == 719);
    Ptr at = 0;
    EXPECT(cu("cuMemAllocAsync", &at, size_t(16), stream) == 719);
}

int main() {
    const char* async = std::getenv("PLIMSOLL_EMU_ASYNC");
    cuda = library("libcuda.so.1");
    blas = library("libcublas.so.13");
    lt = library("libcublasLt.so.13");
    rand_library = library("libcurand.so.10");
    opens_one_device();
    copies_and_launches();
    pinned_copies_are_late(async && *async == '1');
    events_tell_time();
    captures_replay();
    captures_forbid();
    products(0, to_f32, 4);
    products(14, to_bf16, 2);
    products(28, to_e4m3, 1);
    old_blas_multiplies();
    numbers_are_random();
    failures_are_told();
    return failures ? 1 : 0;
}
