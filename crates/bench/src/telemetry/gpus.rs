//! The GPUs of this machine, by NVIDIA's management library (NVML), which is looked for when it is wanted and needed by
//! no build. Behind one trait, so that tests can plant GPUs.

use std::ffi::OsStr;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::{Device, Nvml};
use tokio::task::spawn_blocking;

use crate::series::GpuSample;

/// As the driver installs it; the name without the number comes with development packages only.
const LIBRARY: &str = "libnvidia-ml.so.1";

/// Where figures of GPUs come from. Asking may take as long as a driver likes.
pub(super) trait Source: Send {
    /// The GPUs that concern the server, by index.
    fn read(&mut self) -> Vec<GpuSample>;
}

/// GPUs that can be looked at.
#[derive(Clone)]
pub(super) struct Gpus(Arc<Mutex<dyn Source>>);

impl Gpus {
    pub(super) fn of(source: impl Source + 'static) -> Self {
        Self(Arc::new(Mutex::new(source)))
    }

    /// Those of NVIDIA that this machine has; with a `process`, those on which it computes, where the driver can tell.
    ///
    /// # Errors
    /// Why there is nothing to look at, in a few words.
    pub(super) async fn nvidia(process: Option<u32>) -> Result<Self, String> {
        let opened = spawn_blocking(move || {
            let nvml = Nvml::builder().lib_path(OsStr::new(LIBRARY)).init().map_err(|error| error.to_string())?;
            let count = nvml.device_count().map_err(|error| error.to_string())?;
            if count == 0 { Err("the driver lists none".to_owned()) } else { Ok(Driver { nvml, process }) }
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

struct Driver {
    nvml: Nvml,
    process: Option<u32>,
}

impl Source for Driver {
    fn read(&mut self) -> Vec<GpuSample> {
        let count = self.nvml.device_count().unwrap_or(0);
        let devices = (0..count).filter_map(|index| Some((index, self.nvml.device_by_index(index).ok()?)));
        let samples = devices.map(|(index, device)| (self.is_used(&device), sample(index, &device))).collect();
        used_or_all(samples)
    }
}

impl Driver {
    fn is_used(&self, device: &Device<'_>) -> bool {
        let Some(process) = self.process else { return false };
        device.running_compute_processes().is_ok_and(|all| all.iter().any(|one| one.pid == process))
    }
}

/// Those that are used; all where none is seen to be, as in a container, whose processes have other numbers outside.
fn used_or_all(samples: Vec<(bool, GpuSample)>) -> Vec<GpuSample> {
    let any = samples.iter().any(|(is_used, _)| *is_used);
    samples.into_iter().filter(|(is_used, _)| *is_used || !any).map(|(_, sample)| sample).collect()
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

    #[test]
    fn a_server_s_own_gpus_count_where_they_are_known() {
        let gpu = |index| GpuSample { index, ..GpuSample::default() };
        let indices = |used: [bool; 3]| -> Vec<u32> {
            let samples = used.into_iter().zip(0..).map(|(is_used, index)| (is_used, gpu(index))).collect();
            used_or_all(samples).iter().map(|sample| sample.index).collect()
        };
        assert_eq!(indices([false, true, false]), [1]);
        assert_eq!(indices([false; 3]), [0, 1, 2]);
    }

    /// On a machine with a driver this looks at its GPUs; on others it must say why not.
    #[tokio::test]
    async fn a_machine_without_a_driver_is_told_so() {
        match Gpus::nvidia(None).await {
            Ok(gpus) => assert!(!gpus.look().await.is_empty()),
            Err(why) => assert!(!why.is_empty() && !why.contains('\n'), "{why}"),
        }
    }
}
