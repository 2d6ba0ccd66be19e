//! What a check asks of a device besides launches.

use plimsoll_kernels::{DevicePtr, Queue};

/// A device with memory that a check may fill and read back. All of it is given back when the device is dropped.
pub trait TestDevice {
    fn queue(&self) -> &dyn Queue;

    /// A new buffer that holds `bytes`, aligned to 256.
    fn upload(&self, bytes: &[u8]) -> DevicePtr;

    /// The first `len` bytes at `at`, once all launches so far are done.
    fn download(&self, at: DevicePtr, len: usize) -> Vec<u8>;
}

/// Bytes that no kernel writes: NaNs as bf16, f32 and fp8, and ids that no table has.
pub fn poisoned(len: usize) -> Vec<u8> {
    vec![0xFF; len]
}
