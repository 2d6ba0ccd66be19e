//! The runtime's C interface, `runtime/device.h`.

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub(crate) struct EmuDevice {
    _private: [u8; 0],
}

unsafe extern "C" {
    pub(crate) fn emu_device_new(seed: u64, memory_limit: usize, checks: u32) -> *mut EmuDevice;
    pub(crate) fn emu_device_free(device: *mut EmuDevice);
    pub(crate) fn emu_alloc(device: *mut EmuDevice, bytes: usize) -> u64;
    pub(crate) fn emu_release(device: *mut EmuDevice, at: u64) -> c_int;
    pub(crate) fn emu_copy_in(device: *mut EmuDevice, to: u64, from: *const c_void, bytes: usize) -> c_int;
    pub(crate) fn emu_copy_out(device: *mut EmuDevice, to: *mut c_void, from: u64, bytes: usize) -> c_int;
    pub(crate) fn emu_launch(
        device: *mut EmuDevice,
        kernel: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared_bytes: u32,
        arguments: *const *const c_void,
        count: usize,
    ) -> c_int;
    pub(crate) fn emu_error(device: *const EmuDevice) -> *const c_char;
}
