//! Launching the kernels on a CUDA stream. All of them are loaded, and their limits raised, before the first launch, so
//! that a launch can be captured into a graph.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{CudaStream, DriverError, sys};

use crate::{Launch, LaunchError, Queue};

/// The driver reads a fat binary's header as 64-bit words.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// One fat binary and the entry points in it.
struct Module {
    fatbin: &'static Aligned<[u8]>,
    kernels: &'static [&'static str],
}

static MODULES: &[Module] = include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// A kernel may ask for more shared memory than this only after its limit was raised.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// A CUDA stream that knows the kernels.
pub struct CudaQueue {
    stream: Arc<CudaStream>,
    functions: HashMap<&'static str, sys::CUfunction>,
    modules: Vec<sys::CUmodule>,
    multiprocessors: u32,
}

// SAFETY: the driver's handles may be used from any thread that has bound the context, which `launch` does.
unsafe impl Send for CudaQueue {}
// SAFETY: as above; nothing changes after `new`.
unsafe impl Sync for CudaQueue {}

impl CudaQueue {
    /// Loads all kernels for the stream's device.
    ///
    /// # Errors
    /// The driver refuses them: the GPU is older than those they were compiled for, or is out of memory.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self, DriverError> {
        let context = stream.context();
        context.bind_to_thread()?;
        let attribute = |which| context.attribute(which);
        let multiprocessors =
            attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(1) as u32;
        let most_shared =
            attribute(sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let mut queue = Self { stream, functions: HashMap::new(), modules: Vec::new(), multiprocessors };
        for module in MODULES {
            queue.load(module, most_shared)?;
        }
        Ok(queue)
    }

    /// The stream that launches are queued on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn load(&mut self, module: &Module, most_shared: i32) -> Result<(), DriverError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the image is a whole fat binary, and the context is bound.
        unsafe { sys::cuModuleLoadData(&mut handle, module.fatbin.0.as_ptr().cast()) }.result()?;
        self.modules.push(handle);
        for name in module.kernels {
            let symbol = CString::new(*name).expect("a kernel's name has no zero byte");
            let mut function = std::ptr::null_mut();
            // SAFETY: the module was loaded above.
            unsafe { sys::cuModuleGetFunction(&mut function, handle, symbol.as_ptr()) }.result()?;
            // SAFETY: the driver gave the function. It may have put its loading off.
            unsafe { sys::cuFuncLoad(function) }.result()?;
            raise_shared_limit(function, most_shared)?;
            self.functions.insert(name, function);
        }
        Ok(())
    }
}

/// Lets a kernel have all the shared memory that its static part leaves.
fn raise_shared_limit(function: sys::CUfunction, most: i32) -> Result<(), DriverError> {
    use sys::CUfunction_attribute_enum::{
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
    };
    let mut fixed = 0;
    // SAFETY: `function` is loaded.
    unsafe { sys::cuFuncGetAttribute(&mut fixed, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function) }.result()?;
    let dynamic = (most - fixed).max(DEFAULT_SHARED_BYTES as i32 - fixed);
    // SAFETY: as above.
    unsafe { sys::cuFuncSetAttribute(function, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic) }.result()
}

impl Queue for CudaQueue {
    fn launch(&self, launch: &Launch<'_>) -> Result<(), LaunchError> {
        let function =
            *self.functions.get(launch.kernel).ok_or_else(|| LaunchError::NoSuchKernel(launch.kernel.to_owned()))?;
        let mut args: Vec<*mut c_void> = launch.args.iter().map(|arg| arg.as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = launch.grid;
        let failed = |error: DriverError| LaunchError::Device { kernel: launch.kernel, reason: error.to_string() };
        self.stream.context().bind_to_thread().map_err(failed)?;
        // SAFETY: the arguments are in the order of the kernel's parameters, which the checks in the emulator hold to;
        // that addresses and sizes belong together is the word of the op that launches.
        unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                z,
                launch.threads,
                1,
                1,
                launch.shared_bytes,
                self.stream.cu_stream(),
                args.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .map_err(failed)
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }
}

impl Drop for CudaQueue {
    fn drop(&mut self) {
        if self.stream.context().bind_to_thread().is_err() || self.stream.synchronize().is_err() {
            return; // the context is lost, and its modules with it
        }
        for module in self.modules.drain(..) {
            // SAFETY: loaded by `load`, unloaded once, and no launch is in flight.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}
