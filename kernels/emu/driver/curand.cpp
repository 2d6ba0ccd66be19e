// A stand-in for libcurand: uniform and normal floats, from a generator of its own, not NVIDIA's sequences.
#include <cmath>

#include "api.h"

namespace {

using Status = int;
constexpr Status OK = 0, LENGTH_NOT_MULTIPLE = 105, LAUNCH_FAILURE = 201;

struct Generator {
    uint64_t seed = 0;
    uint64_t offset = 0;
    void* stream = nullptr;
};

// SplitMix64 of a counter, as a float in (0, 1].
float uniform(uint64_t seed, uint64_t index) {
    uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (static_cast<float>(z >> 40) + 1.0f) / 16777216.0f;
}

struct Fill {
    float* out;
    size_t count;
    uint64_t seed, offset;
    bool normal;
    float mean, deviation;
};

CUresult run(const void* operands) {
    const Fill& fill = *static_cast<const Fill*>(operands);
    for (size_t i = 0; i < fill.count; i++) {
        const uint64_t at = fill.offset + i;
        float value = uniform(fill.seed, at);
        if (fill.normal) {
            // Box and Muller, 1958: a pair of uniforms gives a pair of normals.
            const float radius = std::sqrt(-2.0f * std::log(uniform(fill.seed, at & ~uint64_t(1))));
            const float angle = 6.2831853f * uniform(fill.seed, at | 1);
            value = fill.mean + fill.deviation * radius * (at & 1 ? std::sin(angle) : std::cos(angle));
        }
        fill.out[i] = value;
    }
    return SUCCESS;
}

Status generate(void* handle, float* out, size_t count, bool normal, float mean, float deviation) {
    Generator& generator = *static_cast<Generator*>(handle);
    if (plimsoll_emu_check("curandGenerate", reinterpret_cast<CUdeviceptr>(out), count * sizeof(float))) {
        return LAUNCH_FAILURE;
    }
    const Fill fill{out, count, generator.seed, generator.offset, normal, mean, deviation};
    generator.offset += count;
    return plimsoll_emu_enqueue(generator.stream, run, &fill, sizeof fill) == SUCCESS ? OK : LAUNCH_FAILURE;
}

}  // namespace

EXPORT Status curandCreateGenerator(void** generator, int) {
    *generator = new Generator();
    return OK;
}

EXPORT Status curandDestroyGenerator(void* generator) {
    delete static_cast<Generator*>(generator);
    return OK;
}

EXPORT Status curandSetPseudoRandomGeneratorSeed(void* generator, unsigned long long seed) {
    static_cast<Generator*>(generator)->seed = seed;
    return OK;
}

EXPORT Status curandSetGeneratorOffset(void* generator, unsigned long long offset) {
    static_cast<Generator*>(generator)->offset = offset;
    return OK;
}

EXPORT Status curandSetStream(void* generator, void* stream) {
    static_cast<Generator*>(generator)->stream = stream;
    return OK;
}

EXPORT Status curandGenerateUniform(void* generator, float* out, size_t count) {
    return generate(generator, out, count, false, 0, 1);
}

EXPORT Status curandGenerateNormal(void* generator, float* out, size_t count, float mean, float deviation) {
    if (count % 2) return LENGTH_NOT_MULTIPLE;
    return generate(generator, out, count, true, mean, deviation);
}
