//! An emulated device: its memory, and a queue that runs each launch at once.

use plimsoll_kernels::{DevicePtr, Launch, LaunchError, Queue};

/// What an emulator is like.
#[derive(Clone, Debug)]
pub struct EmulatorConfig {
    /// Decides in which order threads and blocks run. The same seed, launches and inputs give the same run.
    pub seed: u64,
    /// What `Queue::multiprocessors` says.
    pub multiprocessors: u32,
    /// Fails a launch that reads bytes of global memory that neither the host nor a kernel wrote.
    pub find_unwritten: bool,
}

impl Default for EmulatorConfig {
    fn default() -> Self {
        Self { seed: 0, multiprocessors: 4, find_unwritten: true }
    }
}

/// A device with memory of its own. Its memory is given back when it is dropped.
///
/// Addresses that it did not give out, or ranges that leave an allocation, panic in `upload_to`, `download` and `free`:
/// they are mistakes of the test that calls.
pub struct Emulator {
    multiprocessors: u32,
    device: Device,
}

impl Emulator {
    pub fn new(config: EmulatorConfig) -> Self {
        Self { multiprocessors: config.multiprocessors, device: Device::new(&config) }
    }

    /// `bytes` bytes that hold NaNs, aligned to 256; bounds are exact.
    pub fn alloc(&self, bytes: usize) -> DevicePtr {
        DevicePtr(self.device.alloc(bytes))
    }

    /// A new allocation that holds `bytes`.
    pub fn upload(&self, bytes: &[u8]) -> DevicePtr {
        let at = self.alloc(bytes.len());
        self.upload_to(at, bytes);
        at
    }

    /// Overwrites what is at `to`.
    pub fn upload_to(&self, to: DevicePtr, bytes: &[u8]) {
        self.device.copy_in(to.0, bytes);
    }

    /// The `len` bytes at `at`.
    pub fn download(&self, at: DevicePtr, len: usize) -> Vec<u8> {
        self.device.copy_out(at.0, len)
    }

    /// Later accesses fail for as long as the address is not given out again.
    pub fn free(&self, at: DevicePtr) {
        self.device.release(at.0);
    }
}

impl Queue for Emulator {
    fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        self.device.launch(launch)
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }
}

#[cfg(emulated)]
use native::Device;
#[cfg(not(emulated))]
use nowhere::Device;

#[cfg(emulated)]
mod native {
    use std::ffi::{CStr, CString, c_void};
    use std::ptr::NonNull;

    use plimsoll_kernels::{Launch, LaunchError};

    use crate::EmulatorConfig;
    use crate::sys::*;

    /// Races, and shared memory used too early.
    const CHECK_RACES: u32 = 1;
    const CHECK_UNWRITTEN: u32 = 2;

    pub(super) struct Device(NonNull<EmuDevice>);

    impl Device {
        pub(super) fn new(config: &EmulatorConfig) -> Self {
            let checks = CHECK_RACES | if config.find_unwritten { CHECK_UNWRITTEN } else { 0 };
            // SAFETY: no preconditions.
            let device = unsafe { emu_device_new(config.seed, usize::MAX, checks) };
            Self(NonNull::new(device).expect("new gives an object"))
        }

        pub(super) fn alloc(&self, bytes: usize) -> u64 {
            // SAFETY: the device lives; it is not shared between threads, as `NonNull` is not.
            let at = unsafe { emu_alloc(self.0.as_ptr(), bytes) };
            assert!(at != 0, "the host has no {bytes} bytes left");
            at
        }

        pub(super) fn copy_in(&self, to: u64, bytes: &[u8]) {
            // SAFETY: as above; the runtime checks the device's side of the range.
            self.demand(unsafe { emu_copy_in(self.0.as_ptr(), to, bytes.as_ptr().cast(), bytes.len()) });
        }

        pub(super) fn copy_out(&self, from: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            // SAFETY: as above.
            self.demand(unsafe { emu_copy_out(self.0.as_ptr(), bytes.as_mut_ptr().cast(), from, len) });
            bytes
        }

        pub(super) fn release(&self, at: u64) {
            // SAFETY: as above.
            self.demand(unsafe { emu_release(self.0.as_ptr(), at) });
        }

        pub(super) fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
            let kernel = CString::new(launch.kernel).expect("a kernel's name has no zero byte");
            let arguments: Vec<*const c_void> = launch.args.iter().map(|arg| arg.as_ptr().cast()).collect();
            let block = [launch.threads, 1, 1];
            // SAFETY: the device lives; each argument has eight bytes, which no parameter exceeds; their number is checked.
            let code = unsafe {
                emu_launch(
                    self.0.as_ptr(),
                    kernel.as_ptr(),
                    launch.grid.as_ptr(),
                    block.as_ptr(),
                    launch.shared_bytes,
                    arguments.as_ptr(),
                    arguments.len(),
                )
            };
            match code {
                0 => Ok(()),
                2 => Err(LaunchError::NoSuchKernel(launch.kernel.to_owned())),
                _ => Err(LaunchError::Device { kernel: launch.kernel, reason: self.error() }),
            }
        }

        fn demand(&self, code: i32) {
            assert!(code == 0, "{}", self.error());
        }

        fn error(&self) -> String {
            // SAFETY: the message lives until the device's next call.
            unsafe { CStr::from_ptr(emu_error(self.0.as_ptr())) }.to_string_lossy().into_owned()
        }
    }

    impl Drop for Device {
        fn drop(&mut self) {
            // SAFETY: made by `emu_device_new`, and freed once.
            unsafe { emu_device_free(self.0.as_ptr()) };
        }
    }
}

/// Where kernels cannot run: memory works, launches say why not.
#[cfg(not(emulated))]
mod nowhere {
    use std::cell::RefCell;
    use std::collections::BTreeMap;

    use plimsoll_kernels::{Launch, LaunchError};

    use crate::EmulatorConfig;

    #[derive(Default)]
    pub(super) struct Device {
        allocations: RefCell<BTreeMap<u64, Vec<u8>>>,
        end: std::cell::Cell<u64>,
    }

    impl Device {
        pub(super) fn new(_: &EmulatorConfig) -> Self {
            Self::default()
        }

        pub(super) fn alloc(&self, bytes: usize) -> u64 {
            let at = (self.end.get() + 4096).next_multiple_of(256);
            self.end.set(at + bytes as u64);
            self.allocations.borrow_mut().insert(at, vec![0xFF; bytes]);
            at
        }

        pub(super) fn copy_in(&self, to: u64, bytes: &[u8]) {
            let mut allocations = self.allocations.borrow_mut();
            let (base, held) = allocations.range_mut(..=to).next_back().expect("an allocation");
            held[(to - base) as usize..][..bytes.len()].copy_from_slice(bytes);
        }

        pub(super) fn copy_out(&self, from: u64, len: usize) -> Vec<u8> {
            let allocations = self.allocations.borrow();
            let (base, held) = allocations.range(..=from).next_back().expect("an allocation");
            held[(from - base) as usize..][..len].to_vec()
        }

        pub(super) fn release(&self, at: u64) {
            self.allocations.borrow_mut().remove(&at).expect("an allocation");
        }

        pub(super) fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
            let reason = crate::unsupported().unwrap_or_default().to_owned();
            Err(LaunchError::Device { kernel: launch.kernel, reason })
        }
    }
}
