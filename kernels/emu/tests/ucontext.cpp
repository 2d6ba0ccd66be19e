// Runs kernels of rules.cu through the emulator's C interface, with the switch between threads that machines other than
// x86-64 use. Built and started by ucontext.rs.
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "../runtime/device.h"

int main() {
    EmuDevice* device = emu_device_new(3, SIZE_MAX, 3);
    const uint64_t out = emu_alloc(device, 1024);
    const uint32_t grid[3] = {1, 1, 1}, block[3] = {128, 1, 1};
    void* arguments[] = {const_cast<uint64_t*>(&out)};
    if (emu_launch(device, "selftest_rounds", grid, block, 512, arguments, 1) != 0) {
        std::printf("%s\n", emu_error(device));
        return 1;
    }
    int32_t found[128];
    emu_copy_out(device, found, out, sizeof found);
    for (int i = 0; i < 128; i++) {
        if (found[i] != (i + 33) % 128 * 3) return 2;
    }
    const int broken = emu_launch(device, "selftest_rounds_broken", grid, block, 512, arguments, 1);
    const bool told = broken == 1 && std::strstr(emu_error(device), "race");
    emu_device_free(device);
    return told ? 0 : 3;
}
