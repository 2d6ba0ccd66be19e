//! Whether a GPU can be used at all, asked before anything would panic for want of a library.

use candle_core::cuda_backend::cudarc::driver::sys::CUdevice_attribute_enum;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result};
use libloading::Library;

use crate::gpu::Unavailable;

/// The oldest GPUs that the kernels are compiled for: Ampere.
const OLDEST: (i32, i32) = (8, 0);

/// What is loaded when a GPU is opened, and the package that brings it.
const LIBRARIES: [(&str, &str, &str); 4] = [
    ("cuda", "1", "NVIDIA's driver"),
    ("cublas", "13", "CUDA 13's runtime libraries"),
    ("cublasLt", "13", "CUDA 13's runtime libraries"),
    ("curand", "10", "CUDA 13's runtime libraries"),
];

/// See [`crate::gpu::count`].
///
/// # Errors
/// What is missing, in one line.
pub fn count() -> Result<usize, Unavailable> {
    for (name, version, package) in LIBRARIES {
        if !loads(name, version) {
            return Err(Unavailable(format!(
                "lib{name}.so.{version} was not found: install {package}, or name its folder in LD_LIBRARY_PATH"
            )));
        }
    }
    result::init().map_err(|error| failed("the CUDA driver did not start", &error))?;
    let count = CudaContext::device_count().map_err(|error| failed("the CUDA driver names no GPU", &error))?;
    Ok(count.max(0) as usize)
}

/// # Errors
/// As [`count`]; no such GPU; one that is too old.
pub(super) fn check(ordinal: usize) -> Result<(), Unavailable> {
    let count = count()?;
    if ordinal >= count {
        return Err(Unavailable(format!("there is no GPU {ordinal}: the CUDA driver has {count} (see nvidia-smi)")));
    }
    let capability = capability(ordinal).map_err(|error| silent(&error))?;
    if capability < OLDEST {
        let ((major, minor), (oldest, _)) = (capability, OLDEST);
        return Err(Unavailable(format!(
            "GPU {ordinal} has compute capability {major}.{minor}; {oldest}.0 (A100) or later is needed"
        )));
    }
    Ok(())
}

fn capability(ordinal: usize) -> Result<(i32, i32), DriverError> {
    use CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    Ok((attribute(ordinal, MAJOR)?, attribute(ordinal, MINOR)?))
}

/// See [`crate::gpu::pci_address`].
///
/// # Errors
/// As said there.
pub fn pci_address(ordinal: usize) -> Result<String, Unavailable> {
    use CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_PCI_BUS_ID as BUS, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID as DEVICE,
        CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID as DOMAIN,
    };
    check(ordinal)?;
    let part = |which| attribute(ordinal, which).map_err(|error| silent(&error));
    Ok(format!("{:08x}:{:02x}:{:02x}.0", part(DOMAIN)?, part(BUS)?, part(DEVICE)?))
}

/// Asked without a context, which opening the GPU will make.
fn attribute(ordinal: usize, which: CUdevice_attribute_enum) -> Result<i32, DriverError> {
    let device = result::device::get(ordinal as i32)?;
    // SAFETY: the driver gave the device.
    unsafe { result::device::get_attribute(device, which) }
}

fn silent(error: &DriverError) -> Unavailable {
    failed("the GPU does not answer", error)
}

fn failed(what: &str, error: &dyn std::fmt::Debug) -> Unavailable {
    Unavailable(format!("{what}: {error:?}"))
}

fn loads(name: &str, version: &str) -> bool {
    // SAFETY: these are NVIDIA's libraries, or stand-ins for them; loading them runs nothing but their set-up.
    [format!("lib{name}.so"), format!("lib{name}.so.{version}")]
        .iter()
        .any(|file| unsafe { Library::new(file) }.is_ok())
}
