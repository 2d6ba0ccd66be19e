// Kernels by name. A generated file for each .cu includes it, and then gives its entry points with `entry`.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace emu {

// Copies one argument of the launch at work. Out of line, so that it is not taken for an access of the kernel.
__attribute__((visibility("hidden"))) void read_argument(size_t index, void* to, size_t bytes);

// One kernel, and how to call it with the arguments of the launch at work.
struct Entry {
    const char* name;
    void (*call)();
    size_t parameters;
    const unsigned char* parameter_bytes;
    unsigned most_threads;  // from __launch_bounds__; 0 without
};

struct Entries {
    const Entry* first;
    size_t count;
};

template <typename... P> constexpr size_t parameters_of(void (*)(P...)) { return sizeof...(P); }

template <typename... P> struct Sizes {
    // One more than needed, so that none is an empty array.
    static constexpr unsigned char bytes[] = {sizeof(P)..., 0};
};

template <typename... P> constexpr const unsigned char* sizes_of(void (*)(P...)) { return Sizes<P...>::bytes; }

template <typename P> P argument(size_t index) {
    static_assert(sizeof(P) <= 8 && !std::is_class_v<P>, "a kernel's parameters are pointers and numbers");
    P value;
    read_argument(index, &value, sizeof(P));
    return value;
}

template <typename... P, size_t... I> void call_with(void (*kernel)(P...), std::index_sequence<I...>) {
    kernel(argument<P>(I)...);
}

template <auto Kernel> void call() { call_with(Kernel, std::make_index_sequence<parameters_of(Kernel)>()); }

template <auto Kernel> constexpr Entry entry(const char* name, unsigned most_threads = 0, unsigned = 0) {
    return Entry{name, call<Kernel>, parameters_of(Kernel), sizes_of(Kernel), most_threads};
}

}  // namespace emu
