//! Which device computes: what `--device` may say, and what this build and this machine make of it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use candle_core::Device as TensorDevice;
use plimsoll_ops::gpu;
use plimsoll_ops::kv_write::KvDtype;
use serde::{Deserialize, Serialize};

use crate::bytes::ByteSize;
use crate::options::CacheDtype;
use crate::paced::Pace;

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Device {
    /// The best device there is.
    Auto,
    /// This machine's CPU.
    Cpu,
    /// An NVIDIA GPU, by the number that CUDA gives it.
    Cuda(usize),
    /// No device: tokens are invented, in no time or at a pace. For measuring the server itself.
    Null(Pace),
}

/// The device that computes, ready to.
#[derive(Clone, Debug)]
pub(crate) enum Compute {
    Cpu,
    Gpu(TensorDevice),
    Null(Pace),
}

/// The device that is meant, and a line for people: which GPU it is; or why it is none, where one could have been meant.
///
/// # Errors
/// A GPU that this build or this machine cannot use.
pub(crate) fn choose(wanted: Device) -> Result<(Compute, Option<String>)> {
    match wanted {
        Device::Cpu => Ok((Compute::Cpu, None)),
        Device::Null(pace) => Ok((Compute::Null(pace), None)),
        Device::Cuda(number) => match gpu::open(number) {
            Ok(device) => found(number, device),
            Err(reason) => bail!("--device {wanted}: {reason}; or give --device cpu"),
        },
        Device::Auto => match gpu::open(0) {
            Ok(device) => found(0, device),
            Err(reason) => {
                let why = || format!("computing on the CPU, since there is no GPU to use: {reason}");
                Ok((Compute::Cpu, gpu::IS_BUILT.then(why)))
            }
        },
    }
}

/// Where the GPU that is meant stands on the PCI bus. None: none is meant, or none can be used.
pub(crate) fn pci_address(wanted: Device) -> Option<String> {
    match wanted {
        Device::Cuda(number) => gpu::pci_address(number).ok(),
        Device::Auto => gpu::pci_address(0).ok(),
        Device::Cpu | Device::Null(_) => None,
    }
}

fn found(number: usize, device: TensorDevice) -> Result<(Compute, Option<String>)> {
    let info = gpu::info(&device)?;
    let line = format!(
        "computing on cuda:{number}, {}: {} of {} free",
        info.name,
        ByteSize(info.free_memory),
        ByteSize(info.total_memory)
    );
    Ok((Compute::Gpu(device), Some(line)))
}

impl Compute {
    /// As people call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::Gpu(_) => "GPU",
            Self::Null(_) => "null",
        }
    }
}

/// The element type of a KV cache on `device`.
///
/// # Errors
/// A type that the device does not have.
pub(crate) fn kv_dtype(wanted: CacheDtype, device: &Compute) -> Result<KvDtype> {
    match (wanted, device) {
        (CacheDtype::Auto | CacheDtype::Bf16, Compute::Gpu(_)) => Ok(KvDtype::BF16),
        (CacheDtype::Fp8, Compute::Gpu(_)) => Ok(KvDtype::Fp8),
        (CacheDtype::F16 | CacheDtype::F32, Compute::Gpu(_)) => {
            bail!("--kv-cache-dtype {wanted:?} is not served on a GPU; give bf16 or fp8")
        }
        (CacheDtype::Auto | CacheDtype::F16, _) => Ok(KvDtype::F16),
        (CacheDtype::Bf16, _) => Ok(KvDtype::BF16),
        (CacheDtype::F32, _) => Ok(KvDtype::F32),
        (CacheDtype::Fp8, _) => Ok(KvDtype::Fp8),
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "null" => Ok(Self::Null(Pace::default())),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let cuda = || text.strip_prefix("cuda:")?.parse().ok().map(Self::Cuda);
                let null = || text.strip_prefix("null:")?.parse().ok().map(Self::Null);
                let told = "give auto, cpu, cuda:N (GPU number N), null, or null:STEP:TOKEN (microseconds)";
                cuda().or_else(null).ok_or_else(|| format!("'{text}' is no device; {told}"))
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Null(pace) if *pace == Pace::default() => f.write_str("null"),
            Self::Null(pace) => write!(f, "null:{pace}"),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> Self {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        let paced = Device::Null("20000:50".parse().unwrap());
        for device in
            [Device::Auto, Device::Cpu, Device::Null(Pace::default()), paced, Device::Cuda(0), Device::Cuda(7)]
        {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:one", "CPU", "null:", "null:5", "null:1:-1"] {
            assert!(text.parse::<Device>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }

    #[test]
    fn what_a_device_lacks_is_refused_by_its_option() {
        let refused = choose(Device::Cuda(3)).unwrap_err().to_string();
        assert!(refused.contains("--device cuda:3") && !refused.contains('\n'), "{refused}");
        assert_eq!(kv_dtype(CacheDtype::Auto, &Compute::Cpu).unwrap(), KvDtype::F16);
        let gpu = Compute::Gpu(TensorDevice::Cpu);
        assert_eq!(kv_dtype(CacheDtype::Auto, &gpu).unwrap(), KvDtype::BF16);
        assert!(kv_dtype(CacheDtype::F16, &gpu).unwrap_err().to_string().contains("give bf16 or fp8"));
        assert_eq!(kv_dtype(CacheDtype::Fp8, &Compute::Cpu).unwrap(), KvDtype::Fp8);
    }
}
