// A stand-in for libcublasLt: one algorithm under two numbers, bound to the shape it was asked for.
#include <cstdio>
#include <cstring>

#include "matmul.h"

using blas::Matrix;
using blas::Product;
using blas::Status;
using blas::Type;

namespace {

struct Description {
    int compute = 0, scale_type = 0, pointer_mode = 0;
    int op_a = 0, op_b = 0;
    int epilogue = 1;
    CUdeviceptr bias = 0;
    int bias_type = -1;
    CUdeviceptr scale_a = 0, scale_b = 0, scale_d = 0;
    int scale_mode_a = 0, scale_mode_b = 0;

    Type type_of_bias(Type of_d) const { return bias_type < 0 ? of_d : static_cast<Type>(bias_type); }
};

struct Layout {
    Type type;
    int order = 0;
    uint64_t rows, columns;
    int64_t leading;
    int batch = 1;
    int64_t stride = 0;
};

struct Preference {
    size_t most_workspace = 0;
};

struct Algorithm {
    uint64_t number, m, n, k, reserved[4];
};

struct Heuristic {
    Algorithm algorithm;
    size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
};

constexpr int DEFAULT_EPILOGUE = 1, BIAS_EPILOGUE = 4, COMPUTE_F32 = 68, COMPUTE_TF32 = 77;
constexpr int SCALAR_SCALES = 0, OUTER_SCALES = 3;
constexpr uint64_t ALGORITHMS = 2;

Status refuse(const char* why) {
    std::fprintf(stderr, "emulated cuBLASLt: %s\n", why);
    return blas::NOT_SUPPORTED;
}

template <typename T> Status take(T& field, const void* from, size_t bytes) {
    if (bytes != sizeof(T)) return blas::BAD_VALUE;
    std::memcpy(&field, from, bytes);
    return blas::OK;
}

Status check_scales(const Description& description, const Layout& a, const Layout& d) {
    const int mode = description.scale_mode_a;
    if (mode != description.scale_mode_b) return refuse("A and B have scales of one kind");
    if (mode == SCALAR_SCALES) return blas::OK;
    if (mode != OUTER_SCALES) return refuse("only scales of matrices, or of rows of A and columns of B");
    if (a.type != blas::E4M3 || (d.type != blas::BF16 && d.type != blas::F32)) {
        return refuse("scales of rows and columns are of fp8, multiplied to bf16 or f32");
    }
    if (!description.scale_a || !description.scale_b) return refuse("scales of rows and columns need their addresses");
    return blas::OK;
}

Status check_bias(const Description& description, const Layout& a, const Layout& d) {
    if (description.epilogue == DEFAULT_EPILOGUE) return blas::OK;
    if (description.epilogue != BIAS_EPILOGUE) return refuse("only the bias epilogue");
    if (!description.bias) return refuse("the bias epilogue without a bias pointer");
    const bool narrow = a.type == blas::E4M3 && d.type == blas::F32;
    if (description.type_of_bias(d.type) != (narrow ? blas::BF16 : d.type)) {
        return refuse("a bias is of D's type, and of fp8 multiplied to f32 bf16");
    }
    return blas::OK;
}

// What cuBLASLt asks of a product, as its documentation lists it.
Status check(const Description& description, const Layout& a, const Layout& b, const Layout& d) {
    if (description.compute != COMPUTE_F32 && description.compute != COMPUTE_TF32) return refuse("only sums in f32");
    if (description.scale_type != blas::F32) return refuse("only alpha and beta in f32");
    if (description.pointer_mode != 0) return refuse("only alpha and beta in host memory");
    if (a.order || b.order || d.order) return refuse("only matrices by columns");
    if (const Status status = check_bias(description, a, d)) return status;
    if (const Status status = check_scales(description, a, d)) return status;
    if ((a.type == blas::E4M3) != (b.type == blas::E4M3)) return refuse("fp8 goes with fp8");
    if (a.type == blas::E4M3) {
        const bool shaped = a.rows % 16 == 0 && a.columns % 16 == 0 && b.columns % 16 == 0;
        if (description.op_a != 1 || description.op_b != 0 || !shaped) {
            return refuse("fp8 needs A transposed, B not, and sizes that are multiples of 16");
        }
    } else if (a.type != b.type) {
        return refuse("A and B are of one type");
    }
    return blas::OK;
}

Algorithm algorithm(uint64_t number, const Description& description, const Layout& a, const Layout& d) {
    return {number, d.rows, d.columns, description.op_a ? a.rows : a.columns, {}};
}

Matrix matrix(const Layout& layout, const void* at) {
    return {layout.type, reinterpret_cast<CUdeviceptr>(at), layout.rows, layout.columns, layout.leading, layout.stride};
}

}  // namespace

EXPORT Status cublasLtCreate(void** handle) {
    *handle = new int(0);
    return blas::OK;
}

EXPORT Status cublasLtDestroy(void* handle) {
    delete static_cast<int*>(handle);
    return blas::OK;
}

EXPORT size_t cublasLtGetVersion() { return 130000; }

EXPORT Status cublasLtMatmulDescCreate(void** out, int compute, int scale_type) {
    auto* description = new Description();
    description->compute = compute;
    description->scale_type = scale_type;
    *out = description;
    return blas::OK;
}

EXPORT Status cublasLtMatmulDescDestroy(void* description) {
    delete static_cast<Description*>(description);
    return blas::OK;
}

EXPORT Status cublasLtMatmulDescSetAttribute(void* handle, int which, const void* from, size_t bytes) {
    Description& description = *static_cast<Description*>(handle);
    int ignored = 0;
    switch (which) {
        case 2: return take(description.pointer_mode, from, bytes);
        case 3: return take(description.op_a, from, bytes);
        case 4: return take(description.op_b, from, bytes);
        case 5: return take(ignored, from, bytes) == blas::OK && ignored == 0 ? blas::OK : refuse("C is not transposed");
        case 7: return take(description.epilogue, from, bytes);
        case 8: return take(description.bias, from, bytes);
        case 17: return take(description.scale_a, from, bytes);
        case 18: return take(description.scale_b, from, bytes);
        case 20: return take(description.scale_d, from, bytes);
        case 25: return blas::OK;  // sums of fp8 in fewer bits
        case 26: return take(description.bias_type, from, bytes);
        case 31: return take(description.scale_mode_a, from, bytes);
        case 32: return take(description.scale_mode_b, from, bytes);
        default: std::fprintf(stderr, "emulated cuBLASLt: attribute %d\n", which); return blas::NOT_SUPPORTED;
    }
}

EXPORT Status cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *out = new Layout{static_cast<Type>(type), 0, rows, columns, leading, 1, 0};
    return blas::OK;
}

EXPORT Status cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return blas::OK;
}

EXPORT Status cublasLtMatrixLayoutSetAttribute(void* handle, int which, const void* from, size_t bytes) {
    Layout& layout = *static_cast<Layout*>(handle);
    switch (which) {
        case 0: return take(layout.type, from, bytes);
        case 1: return take(layout.order, from, bytes) == blas::OK && layout.order == 0 ? blas::OK
                                                                                        : refuse("only by columns");
        case 2: return take(layout.rows, from, bytes);
        case 3: return take(layout.columns, from, bytes);
        case 4: return take(layout.leading, from, bytes);
        case 5: return take(layout.batch, from, bytes);
        case 6: return take(layout.stride, from, bytes);
        default: return blas::NOT_SUPPORTED;
    }
}

EXPORT Status cublasLtMatmulPreferenceCreate(void** out) {
    *out = new Preference();
    return blas::OK;
}

EXPORT Status cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<Preference*>(preference);
    return blas::OK;
}

EXPORT Status cublasLtMatmulPreferenceSetAttribute(void* handle, int which, const void* from, size_t bytes) {
    constexpr int MAX_WORKSPACE = 1;
    return which == MAX_WORKSPACE ? take(static_cast<Preference*>(handle)->most_workspace, from, bytes) : blas::OK;
}

EXPORT Status cublasLtMatmulAlgoGetHeuristic(void*, void* description_handle, void* a, void* b, void*, void* d, void*,
                                             int wanted, void* out, int* found) {
    const Description& description = *static_cast<Description*>(description_handle);
    *found = 0;
    if (check(description, *static_cast<Layout*>(a), *static_cast<Layout*>(b), *static_cast<Layout*>(d))) {
        return blas::NOT_SUPPORTED;
    }
    for (uint64_t i = 0; i < ALGORITHMS && i < static_cast<uint64_t>(wanted); i++) {
        Heuristic result{};
        result.algorithm = algorithm(i + 1, description, *static_cast<Layout*>(a), *static_cast<Layout*>(d));
        result.waves = 1;
        std::memcpy(static_cast<char*>(out) + i * sizeof result, &result, sizeof result);
        *found = static_cast<int>(i + 1);
    }
    return blas::OK;
}

EXPORT Status cublasLtMatmul(void* handle, void* description_handle, const void* alpha, const void* a, void* a_layout,
                             const void* b, void* b_layout, const void* beta, const void* c, void* c_layout, void* d,
                             void* d_layout, const void* chosen, void* workspace, size_t workspace_bytes, void* stream) {
    if (!handle) return blas::NOT_INITIALIZED;
    const Description& description = *static_cast<Description*>(description_handle);
    const Layout &of_a = *static_cast<Layout*>(a_layout), &of_b = *static_cast<Layout*>(b_layout);
    const Layout &of_c = *static_cast<Layout*>(c_layout), &of_d = *static_cast<Layout*>(d_layout);
    if (const Status status = check(description, of_a, of_b, of_d)) return status;
    if (chosen) {
        const Algorithm given = *static_cast<const Algorithm*>(chosen);
        const Algorithm expected = algorithm(given.number, description, of_a, of_d);
        if (given.number < 1 || given.number > ALGORITHMS || std::memcmp(&given, &expected, sizeof given) != 0) {
            return refuse("the algorithm was chosen for another product");
        }
    }
    if (workspace_bytes &&
        plimsoll_emu_check("workspace", reinterpret_cast<CUdeviceptr>(workspace), workspace_bytes)) {
        return blas::BAD_VALUE;
    }
    Product product{};
    product.a = matrix(of_a, a);
    product.b = matrix(of_b, b);
    product.c = matrix(of_c, c);
    product.d = matrix(of_d, d);
    product.transposed_a = description.op_a != 0;
    product.transposed_b = description.op_b != 0;
    product.batch = of_d.batch;
    product.alpha = *static_cast<const float*>(alpha);
    product.beta = *static_cast<const float*>(beta);
    if (description.epilogue == BIAS_EPILOGUE) {
        product.bias = description.bias;
        product.bias_type = description.type_of_bias(of_d.type);
    }
    product.scale_a = description.scale_a;
    product.scale_b = description.scale_b;
    product.scale_d = description.scale_d;
    product.outer_scales = description.scale_mode_a == OUTER_SCALES;
    return blas::enqueue(product, stream);
}
