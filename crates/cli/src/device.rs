//! Which device computes: what `--device` may say, and what this build and this machine make of it.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};
use plimsoll_ops::kv_write::KvDtype;
use serde::{Deserialize, Serialize};

use crate::options::CacheDtype;

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
    /// No device: tokens are invented. For measuring the server itself.
    Null,
}

/// The device that is meant: never [`Device::Auto`].
///
/// # Errors
/// A GPU that this build or this machine cannot use.
pub(crate) fn choose(wanted: Device) -> Result<Device> {
    match wanted {
        Device::Auto | Device::Cpu => Ok(Device::Cpu),
        Device::Null => Ok(Device::Null),
        Device::Cuda(_) => bail!("--device {wanted}: this build has no CUDA; give --device cpu, or leave it out"),
    }
}

/// The element type of a KV cache on `device`.
///
/// # Errors
/// A type that the device does not have.
pub(crate) fn kv_dtype(wanted: CacheDtype, device: Device) -> Result<KvDtype> {
    match (wanted, device) {
        (CacheDtype::Auto, Device::Cuda(_)) => Ok(KvDtype::BF16),
        (CacheDtype::Auto, _) | (CacheDtype::F16, _) => Ok(KvDtype::F16),
        (CacheDtype::Bf16, _) => Ok(KvDtype::BF16),
        (CacheDtype::F32, _) => Ok(KvDtype::F32),
        (CacheDtype::Fp8, _) => {
            bail!("--kv-cache-dtype fp8 needs a GPU, and the device is {device}; give f16, bf16 or f32")
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "null" => Ok(Self::Null),
            "cuda" => Ok(Self::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::Cuda(number)),
                _ => Err(format!("'{text}' is no device; give auto, cpu, cuda:N (GPU number N) or null")),
            },
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Null => f.write_str("null"),
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
        for device in [Device::Auto, Device::Cpu, Device::Null, Device::Cuda(0), Device::Cuda(7)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:one", "CPU"] {
            assert!(text.parse::<Device>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }

    #[test]
    fn what_a_device_lacks_is_refused_by_its_option() {
        assert_eq!(choose(Device::Auto).unwrap(), Device::Cpu);
        let refused = choose(Device::Cuda(3)).unwrap_err().to_string();
        assert!(refused.contains("--device cuda:3") && !refused.contains('\n'), "{refused}");
        assert_eq!(kv_dtype(CacheDtype::Auto, Device::Cpu).unwrap(), KvDtype::F16);
        assert_eq!(kv_dtype(CacheDtype::Auto, Device::Cuda(0)).unwrap(), KvDtype::BF16);
        let refused = kv_dtype(CacheDtype::Fp8, Device::Cpu).unwrap_err().to_string();
        assert!(refused.contains("--kv-cache-dtype fp8") && refused.contains("cpu"), "{refused}");
    }
}
