//! What a run takes of the machine: memory and energy. Read where it can be read; what cannot is `None`, never 0.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Energy of the whole machine's processors while a run lasted, whatever else they did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Energy {
    /// Joules of all CPU packages (RAPL).
    pub cpu_joules: Option<f64>,
    /// Joules of all GPUs: their power as nvidia-smi tells it, once a second.
    pub gpu_joules: Option<f64>,
}

/// Memory that a server holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Of the host, now.
    pub resident: Option<u64>,
    /// Of the host, at most so far.
    pub peak_resident: Option<u64>,
    /// Of all GPUs, whoever uses them.
    pub gpu: Option<u64>,
}

/// Of this machine's process `pid`.
pub(crate) fn memory_of_process(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Memory { resident: field("VmRSS:"), peak_resident: field("VmHWM:"), gpu: gpu_now().map(|gpu| gpu.memory) }
}

/// As a server tells it in its metrics.
pub(crate) fn memory_in_metrics(metrics: &str) -> Memory {
    let value =
        |line: &str| line.strip_prefix("process_resident_memory_bytes")?.split_whitespace().last()?.parse::<f64>().ok();
    let resident = metrics.lines().find_map(value).map(|bytes| bytes as u64);
    Memory { resident, ..Memory::default() }
}

/// Measures energy from its start to its end.
pub(crate) struct EnergyMeter {
    stop: Sender<()>,
    thread: Option<JoinHandle<Energy>>,
}

impl EnergyMeter {
    pub(crate) fn start() -> Self {
        let (stop, stopped) = channel();
        let thread = thread::spawn(move || {
            let mut counters = Counter::all(Path::new("/sys/class/powercap"));
            let mut gpu = gpu_now().map(|_| (0.0, Instant::now()));
            loop {
                let is_over = stopped.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout);
                counters.iter_mut().for_each(Counter::read);
                if let Some((joules, since)) = &mut gpu
                    && let Some(now) = gpu_now()
                {
                    *joules += now.watts * since.elapsed().as_secs_f64();
                    *since = Instant::now();
                }
                if is_over {
                    break;
                }
            }
            let cpu = (!counters.is_empty()).then(|| counters.iter().map(|counter| counter.joules).sum());
            Energy { cpu_joules: cpu, gpu_joules: gpu.map(|(joules, _)| joules) }
        });
        Self { stop, thread: Some(thread) }
    }

    pub(crate) fn finish(mut self) -> Energy {
        // The thread ends also where nobody is left to tell it.
        let _ = self.stop.send(());
        self.thread.take().and_then(|thread| thread.join().ok()).unwrap_or_default()
    }
}

/// A CPU package's counter of energy. Only root may read it on most systems.
struct Counter {
    path: PathBuf,
    range: u64,
    last: u64,
    joules: f64,
}

impl Counter {
    /// Of whole packages under `root`; what they count includes their cores.
    fn all(root: &Path) -> Vec<Self> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_package = |folder: &PathBuf| {
            fs::read_to_string(folder.join("name")).is_ok_and(|name| name.trim().starts_with("package"))
        };
        entries.filter(is_package).filter_map(|folder| Self::of(&folder)).collect()
    }

    fn of(folder: &Path) -> Option<Self> {
        let path = folder.join("energy_uj");
        let (last, range) = (number_in(&path)?, number_in(&folder.join("max_energy_range_uj"))?);
        Some(Self { path, range, last, joules: 0.0 })
    }

    /// Adds what was used since the last time; the counter begins anew at its range.
    fn read(&mut self) {
        let Some(now) = number_in(&self.path) else { return };
        let used = if now >= self.last { now - self.last } else { now + self.range.saturating_sub(self.last) };
        self.joules += used as f64 / 1e6;
        self.last = now;
    }
}

fn number_in(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Gpu {
    watts: f64,
    memory: u64,
}

/// All GPUs of this machine together, if there is one that tells.
fn gpu_now() -> Option<Gpu> {
    let mut command = Command::new("nvidia-smi");
    command.args(["--query-gpu=power.draw,memory.used", "--format=csv,noheader,nounits"]);
    let output = command.output().ok().filter(|output| output.status.success())?;
    gpus_of(&String::from_utf8_lossy(&output.stdout))
}

/// Lines of watts and MiB.
fn gpus_of(lines: &str) -> Option<Gpu> {
    let gpu = |line: &str| {
        let (watts, mib) = line.split_once(',')?;
        Some(Gpu { watts: watts.trim().parse().ok()?, memory: mib.trim().parse::<u64>().ok()? << 20 })
    };
    let gpus: Option<Vec<Gpu>> = lines.lines().filter(|line| !line.trim().is_empty()).map(gpu).collect();
    let sum = |a: Gpu, b: Gpu| Gpu { watts: a.watts + b.watts, memory: a.memory + b.memory };
    gpus?.into_iter().reduce(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_and_a_stranger_has_none() {
        let own = memory_of_process(std::process::id());
        assert!(own.resident > Some(1 << 20) && own.peak_resident >= own.resident);
        assert_eq!(memory_of_process(u32::MAX).resident, None);
        assert_eq!(memory_in_metrics("x 1\nprocess_resident_memory_bytes 2.5e+06\n").resident, Some(2_500_000));
        assert_eq!(memory_in_metrics("").resident, None);
    }

    #[test]
    fn counters_wrap_and_what_is_not_there_is_not_counted() {
        let folder = std::env::temp_dir().join(format!("plimsoll-powercap-{}", std::process::id()));
        let package = folder.join("intel-rapl:0");
        fs::create_dir_all(&package).unwrap();
        let write = |name: &str, text: &str| fs::write(package.join(name), text).unwrap();
        write("name", "package-0\n");
        write("max_energy_range_uj", "10000000\n");
        write("energy_uj", "9000000\n");
        let mut counters = Counter::all(&folder);
        write("energy_uj", "1500000\n");
        counters[0].read();
        assert_eq!((counters.len(), counters[0].joules), (1, 2.5));
        write("name", "core\n");
        assert!(Counter::all(&folder).is_empty());
        fs::remove_dir_all(&folder).unwrap();
        assert!(Counter::all(&folder).is_empty());
    }

    #[test]
    fn gpus_are_summed_up() {
        assert_eq!(gpus_of("101.5, 1024\n98.5, 1\n"), Some(Gpu { watts: 200.0, memory: 1025 << 20 }));
        assert_eq!(gpus_of("[N/A], 5\n"), None);
        assert_eq!(gpus_of(""), None);
    }
}
