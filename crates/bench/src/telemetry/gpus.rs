//! The GPUs of this machine, by NVIDIA's management library (NVML), which is looked for when it is wanted and needed by
//! no build. Behind one trait, so that tests can plant GPUs.

use std::ffi::OsStr;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};
use tokio::task::spawn_blocking;

use crate::series::GpuSample;

/// As the driver installs it; the name without the number comes with development packages only.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Where figures of GPUs come from. Asking may take as long as a driver likes.
pub(super) trait Source: Send {
    /// The GPUs that concern the server, by NVML's index.
    fn read(&mut self) -> Vec<GpuSample>;
}

/// Which GPUs of this machine are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// Each, whoever uses it.
    Host,
    /// The one at this address of the PCI bus.
    At(String),
    /// Those with these indices of NVML.
    Numbered(Vec<u32>),
}

/// GPUs that can be looked at.
#[derive(Clone)]
pub(super) struct Gpus(Arc<Mutex<dyn Source>>);

impl Gpus {
    pub(super) fn of(source: impl Source + 'static) -> Self {
        Self(Arc::new(Mutex::new(source)))
    }

    /// Those of NVIDIA.
    ///
    /// # Errors
    /// Why there is nothing to look at, in a few words.
    pub(super) async fn nvidia(which: Which) -> Result<Self, String> {
        let opened = spawn_blocking(move || {
            let nvml = Nvml::builder().lib_path(OsStr::new(LIBRARY)).init().map_err(|error| why(&error))?;
            let indices = indices(&nvml, &which).map_err(|error| why(&error))?;
            if indices.is_empty() { Err("the driver lists none".to_owned()) } else { Ok(Driver { nvml, indices }) }
        });
        opened.await.unwrap_or_else(|error| Err(error.to_string())).map(Self::of)
    }

    /// What they do now; asked on a thread of its own kind, so that a slow driver holds up no request.
    pub(super) async fn look(&self) -> Vec<GpuSample> {
        let source = self.0.clone();
        spawn_blocking(move || source.lock().unwrap_or_else(PoisonError::into_inner).read()).await.unwrap_or_default()
    }
}

impl fmt::Debug for Gpus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Gpus")
    }
}

fn why(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) => format!("no NVIDIA driver: there is no {LIBRARY}"),
        other => other.to_string(),
    }
}

fn indices(nvml: &Nvml, which: &Which) -> Result<Vec<u32>, NvmlError> {
    match which {
        Which::Host => Ok((0..nvml.device_count()?).collect()),
        Which::At(address) => Ok(vec![nvml.device_by_pci_bus_id(address.as_str())?.index()?]),
        Which::Numbered(indices) => indices.iter().map(|&index| nvml.device_by_index(index)?.index()).collect(),
    }
}

struct Driver {
    nvml: Nvml,
    indices: Vec<u32>,
}

impl Source for Driver {
    fn read(&mut self) -> Vec<GpuSample> {
        let sampled = |&index: &u32| Some(sample(index, &self.nvml.device_by_index(index).ok()?));
        // All or none: a sum over fewer of them would be taken for one over all.
        self.indices.iter().map(sampled).collect::<Option<_>>().unwrap_or_default()
    }
}

fn sample(index: u32, device: &Device<'_>) -> GpuSample {
    let milli = |value: f64| value / 1e3;
    GpuSample {
        index,
        utilization: device.utilization_rates().ok().map(|rates| f64::from(rates.gpu) / 100.0),
        memory_bytes: device.memory_info().ok().map(|memory| memory.used as f64),
        sm_clock_mhz: device.clock_info(Clock::SM).ok().map(f64::from),
        power_w: device.power_usage().ok().map(|milliwatts| milli(milliwatts.into())),
        energy_j: device.total_energy_consumption().ok().map(|millijoules| milli(millijoules as f64)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// GPUs that draw so many watts, one look a second.
    pub(in crate::telemetry) struct Planted {
        pub(in crate::telemetry) watts: Vec<f64>,
        pub(in crate::telemetry) seconds: f64,
    }

    impl Source for Planted {
        fn read(&mut self) -> Vec<GpuSample> {
            self.seconds += 1.0;
            let sample = |(index, watts): (usize, &f64)| GpuSample {
                index: index as u32,
                power_w: Some(*watts),
                energy_j: Some(watts * self.seconds),
                ..GpuSample::default()
            };
            self.watts.iter().enumerate().map(sample).collect()
        }
    }

    #[tokio::test]
    async fn each_look_asks_the_source_anew() {
        let gpus = Gpus::of(Planted { watts: vec![300.0, 650.0], seconds: 0.0 });
        let (first, second) = (gpus.look().await, gpus.look().await);
        assert_eq!((first.len(), first[1].index, first[1].energy_j), (2, 1, Some(650.0)));
        assert_eq!(second[1].energy_j, Some(1300.0));
    }

    /// On a machine with a driver this looks at its GPUs; on others it must say why not.
    #[tokio::test]
    async fn a_machine_without_a_driver_is_told_so() {
        match Gpus::nvidia(Which::Host).await {
            Ok(gpus) => assert!(!gpus.look().await.is_empty()),
            Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{why}"),
        }
    }
}
