#include "matmul.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

#include "../include/cuda_fp8.h"

namespace blas {
namespace {

// The same bits on every machine: the loops below are compiled for each, and add up in the same order.
#if defined(__x86_64__) && !defined(__clang__)
#define WIDEST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WIDEST
#endif

const std::array<float, 256> E4M3_VALUES = [] {
    std::array<float, 256> all{};
    for (unsigned code = 0; code < 256; code++) {
        all[code] = __half2float(__nv_cvt_fp8_to_halfraw(static_cast<unsigned char>(code), __NV_E4M3));
    }
    return all;
}();

double load(Type type, CUdeviceptr at, int64_t index) {
    switch (type) {
        case F32: return reinterpret_cast<const float*>(at)[index];
        case F64: return reinterpret_cast<const double*>(at)[index];
        case F16: return __half2float(reinterpret_cast<const __half*>(at)[index]);
        case BF16: return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(at)[index]);
        case E4M3: return E4M3_VALUES[reinterpret_cast<const uint8_t*>(at)[index]];
    }
    return NAN;
}

void store(Type type, CUdeviceptr at, int64_t index, double value) {
    const float single = static_cast<float>(value);
    switch (type) {
        case F32: reinterpret_cast<float*>(at)[index] = single; break;
        case F64: reinterpret_cast<double*>(at)[index] = value; break;
        case F16: reinterpret_cast<__half*>(at)[index] = __float2half_rn(single); break;
        case BF16: reinterpret_cast<__nv_bfloat16*>(at)[index] = __float2bfloat16_rn(single); break;
        case E4M3: reinterpret_cast<__nv_fp8_e4m3*>(at)[index] = __nv_fp8_e4m3(single); break;
    }
}

WIDEST void widen_bf16(const uint16_t* from, float* to, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = uint32_t(from[i]) << 16;
        std::memcpy(&to[i], &bits, 4);
    }
}

// Sixteen sums side by side, which every instruction set adds up in the same order.
WIDEST float dot(const float* a, const float* b, int64_t count) {
    float sums[16] = {};
    int64_t k = 0;
    for (; k + 16 <= count; k += 16) {
        for (int i = 0; i < 16; i++) sums[i] += a[k + i] * b[k + i];
    }
    float sum = 0;
    for (float part : sums) sum += part;
    for (; k < count; k++) sum += a[k] * b[k];
    return sum;
}

// Column `index` of a matrix, or row if `across`, as floats.
void gather(const Matrix& matrix, CUdeviceptr at, bool across, int64_t index, int64_t count, float* out) {
    const int64_t first = across ? index : index * matrix.leading, step = across ? matrix.leading : 1;
    if (matrix.type == BF16 && step == 1) {
        widen_bf16(reinterpret_cast<const uint16_t*>(at) + first, out, count);
    } else if (matrix.type == F32 && step == 1) {
        std::memcpy(out, reinterpret_cast<const float*>(at) + first, static_cast<size_t>(count) * 4);
    } else {
        for (int64_t i = 0; i < count; i++) out[i] = static_cast<float>(load(matrix.type, at, first + i * step));
    }
}

double scale(CUdeviceptr at, int64_t index = 0) { return at ? reinterpret_cast<const float*>(at)[index] : 1.0; }

CUdeviceptr of_batch(const Matrix& matrix, int i) {
    return matrix.at + static_cast<CUdeviceptr>(matrix.stride * i) * bytes_of(matrix.type);
}

struct Job {
    const Product& product;
    CUdeviceptr a, c, d;
    const std::vector<float>& columns;  // of op(B), one after the other
    int64_t n, k;
};

void compute_row(const Job& job, int64_t row, std::vector<float>& scratch) {
    const Product& p = job.product;
    gather(p.a, job.a, !p.transposed_a, row, job.k, scratch.data());
    const double alpha = p.alpha * scale(p.scale_a, p.outer_scales ? row : 0);
    const double bias = p.bias ? load(p.bias_type, p.bias, row) : 0.0;
    for (int64_t column = 0; column < job.n; column++) {
        double value = dot(scratch.data(), &job.columns[static_cast<size_t>(column * job.k)], job.k);
        value *= alpha * scale(p.scale_b, p.outer_scales ? column : 0);
        if (p.beta != 0) value += p.beta * load(p.c.type, job.c, column * p.c.leading + row);
        store(p.d.type, job.d, column * p.d.leading + row, (value + bias) * scale(p.scale_d));
    }
}

void compute(const Product& product, int batch) {
    const int64_t m = static_cast<int64_t>(product.d.rows), n = static_cast<int64_t>(product.d.columns);
    const int64_t k = static_cast<int64_t>(product.transposed_a ? product.a.rows : product.a.columns);
    std::vector<float> columns(static_cast<size_t>(n * k));
    for (int64_t j = 0; j < n; j++) {
        gather(product.b, of_batch(product.b, batch), product.transposed_b, j, k, &columns[static_cast<size_t>(j * k)]);
    }
    const Job job{product, of_batch(product.a, batch), product.c.at ? of_batch(product.c, batch) : 0,
                  of_batch(product.d, batch), columns, n, k};
    constexpr int64_t STEP = 64, WORTH_THREADS = 4 << 20;
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        std::vector<float> scratch(static_cast<size_t>(k));
        for (int64_t first; (first = next.fetch_add(STEP)) < m;) {
            for (int64_t row = first; row < std::min(first + STEP, m); row++) compute_row(job, row, scratch);
        }
    };
    std::vector<std::thread> helpers;
    if (m * n * k > WORTH_THREADS) {
        for (unsigned i = 1; i < std::thread::hardware_concurrency(); i++) helpers.emplace_back(work);
    }
    work();
    for (std::thread& helper : helpers) helper.join();
}

CUresult run(const void* operands) {
    const Product& product = *static_cast<const Product*>(operands);
    for (int batch = 0; batch < product.batch; batch++) compute(product, batch);
    return SUCCESS;
}

Status refuse(const char* why) {
    std::fprintf(stderr, "emulated cuBLAS: %s\n", why);
    return BAD_VALUE;
}

bool in_bounds(const char* what, const Matrix& matrix, int batch) {
    if (matrix.rows == 0 || matrix.columns == 0) return true;
    const uint64_t last = (matrix.columns - 1) * static_cast<uint64_t>(matrix.leading) + matrix.rows +
                          static_cast<uint64_t>(matrix.stride) * static_cast<uint64_t>(batch - 1);
    return plimsoll_emu_check(what, matrix.at, last * bytes_of(matrix.type)) == SUCCESS;
}

}  // namespace

size_t bytes_of(Type type) {
    switch (type) {
        case F64: return 8;
        case F32: return 4;
        case E4M3: return 1;
        default: return 2;
    }
}

bool known(Type type) { return type == F32 || type == F64 || type == F16 || type == BF16 || type == E4M3; }

Status enqueue(const Product& product, void* stream) {
    const uint64_t m = product.transposed_a ? product.a.columns : product.a.rows;
    const uint64_t k = product.transposed_a ? product.a.rows : product.a.columns;
    const uint64_t inner = product.transposed_b ? product.b.columns : product.b.rows;
    const uint64_t n = product.transposed_b ? product.b.rows : product.b.columns;
    if (k != inner || m != product.d.rows || n != product.d.columns) return refuse("the shapes do not fit together");
    for (const Matrix* matrix : {&product.a, &product.b, &product.c, &product.d}) {
        if (!known(matrix->type)) return refuse("only f32, f64, f16, bf16 and fp8 e4m3 are emulated");
        if (matrix->leading < static_cast<int64_t>(matrix->rows)) return refuse("a leading dimension is too small");
    }
    const bool bounds = in_bounds("matrix product, A", product.a, product.batch) &&
                        in_bounds("matrix product, B", product.b, product.batch) &&
                        (product.beta == 0 || in_bounds("matrix product, C", product.c, product.batch)) &&
                        in_bounds("matrix product, D", product.d, product.batch);
    if (!bounds) return EXECUTION_FAILED;
    if (product.bias && plimsoll_emu_check("matrix product, bias", product.bias, m * bytes_of(product.bias_type))) {
        return EXECUTION_FAILED;
    }
    const uint64_t scales_a = product.outer_scales ? m : 1, scales_b = product.outer_scales ? n : 1;
    if ((product.scale_a && plimsoll_emu_check("matrix product, scales of A", product.scale_a, scales_a * 4)) ||
        (product.scale_b && plimsoll_emu_check("matrix product, scales of B", product.scale_b, scales_b * 4))) {
        return EXECUTION_FAILED;
    }
    return plimsoll_emu_enqueue(stream, run, &product, sizeof product) == SUCCESS ? OK : EXECUTION_FAILED;
}

}  // namespace blas
