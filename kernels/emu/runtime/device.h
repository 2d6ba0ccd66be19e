// The emulator as its users see it, in C: a device with memory that runs kernels by name.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct EmuDevice EmuDevice;

// `checks`: 1, races and reads of shared memory before its time; 2, reads of global memory that nobody has written.
EmuDevice* emu_device_new(uint64_t seed, size_t memory_limit, uint32_t checks);
void emu_device_free(EmuDevice* device);

// 0 when the device's memory is used up.
uint64_t emu_alloc(EmuDevice* device, size_t bytes);
// These give 0, or 1 with a message to be had from emu_error.
int emu_release(EmuDevice* device, uint64_t at);
int emu_copy_in(EmuDevice* device, uint64_t to, const void* from, size_t bytes);
int emu_copy_out(EmuDevice* device, void* to, uint64_t from, size_t bytes);
// As emu_copy_in; `count` arguments, or SIZE_MAX if the caller does not know. 2 if there is no such kernel.
int emu_launch(EmuDevice* device, const char* kernel, const uint32_t grid[3], const uint32_t block[3],
               uint32_t shared_bytes, void* const* arguments, size_t count);
// Parameters of a kernel, or -1 if there is none of that name.
int emu_parameters(const char* kernel);
// Bytes of one of them.
size_t emu_parameter_bytes(const char* kernel, size_t index);
// 0 if all of these bytes are one allocation's; 1 with a message if not.
int emu_check_range(EmuDevice* device, uint64_t at, size_t bytes);
size_t emu_memory_used(const EmuDevice* device);
const char* emu_error(const EmuDevice* device);

#ifdef __cplusplus
}
#endif
