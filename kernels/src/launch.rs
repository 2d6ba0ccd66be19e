//! What a kernel launch is made of: addresses, arguments, a grid; and the queue that takes launches, which is a CUDA
//! stream or the emulator. This module must never know what a kernel computes.

/// An address in a device's memory. The host never reads through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// Stands for an operand that is not there.
    pub const NULL: DevicePtr = DevicePtr(0);

    /// The address `bytes` further on.
    pub fn byte_add(self, bytes: usize) -> Self {
        DevicePtr(self.0 + bytes as u64)
    }

    pub fn is_null(self) -> bool {
        self.0 == 0
    }
}

/// One argument of a kernel: a pointer or a number of at most eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct Arg([u8; 8]);

impl Arg {
    fn of<const N: usize>(bytes: [u8; N]) -> Self {
        let mut all = [0; 8];
        all[..N].copy_from_slice(&bytes);
        Self(all)
    }

    /// What the driver is handed: the address of the argument's value.
    pub fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }
}

impl From<DevicePtr> for Arg {
    fn from(value: DevicePtr) -> Self {
        Self::of(value.0.to_ne_bytes())
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self::of(value.to_ne_bytes())
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Self::of(value.to_ne_bytes())
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self::of(value.to_ne_bytes())
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self::of(value.to_ne_bytes())
    }
}

/// A launch of one kernel.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The entry point's name.
    pub kernel: &'static str,
    /// Blocks in x, y and z; each at least 1.
    pub grid: [u32; 3],
    /// Threads a block, in x.
    pub threads: u32,
    /// Dynamic shared memory a block, in bytes.
    pub shared_bytes: u32,
    /// In the order of the entry point's parameters.
    pub args: &'a [Arg],
}

/// Where launches go, to run one after the other.
pub trait Queue {
    /// Queues a launch. It may still be running, or not have begun, when this returns.
    ///
    /// # Errors
    /// The device does not know the kernel, or refuses the launch.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError>;

    /// How many blocks the device runs side by side at least, its multiprocessors: what a plan cuts work for.
    fn multiprocessors(&self) -> u32;
}

/// Why nothing was launched.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// Operands that the kernel was not made for; the message says which, and what would do.
    #[error("{kernel}: {problem}")]
    Unsupported { kernel: &'static str, problem: String },
    #[error("the device has no kernel {0}: was it built from other sources?")]
    NoSuchKernel(String),
    /// From the driver. Later results cannot be trusted.
    #[error("{kernel}: the device refused the launch: {reason}")]
    Device { kernel: &'static str, reason: String },
}
