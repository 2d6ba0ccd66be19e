//! What a GPU draws while a load runs, as nvidia-smi tells it; nothing where there is none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::drive::median;

/// A log that is being written; ended with the value.
pub struct PowerLog {
    child: Child,
    path: PathBuf,
}

impl PowerLog {
    /// Starts to write to `path`, four times a second, what the GPU with the PCI address `gpu` draws, as the program
    /// `nvidia_smi` tells it, which numbers GPUs otherwise than CUDA. `None` where that does not start.
    pub fn start(nvidia_smi: &Path, gpu: &str, path: PathBuf) -> Option<Self> {
        let log = File::create(&path).ok()?;
        let mut command = Command::new(nvidia_smi);
        command.args(["--query-gpu=power.draw", "--format=csv,noheader,nounits", "--loop-ms=250"]);
        command.arg(format!("--id={gpu}")).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
        Some(Self { child: command.spawn().ok()?, path })
    }

    /// The median so far, in watts: what ramping up and down draws does not count. `None` of a log without numbers.
    pub fn watts(self) -> Option<f64> {
        let text = fs::read_to_string(&self.path).ok()?;
        median(text.lines().filter_map(|line| line.trim().parse().ok()).filter(|watts| *watts > 0.0).collect())
    }
}

impl Drop for PowerLog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::{Duration, Instant};

    use super::*;

    const GPU: &str = "00000000:17:00.0";

    #[test]
    fn watts_are_the_median_of_what_was_told() {
        let folder = std::env::temp_dir().join(format!("plimsoll-power-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = folder.join("nvidia-smi");
        fs::write(&program, "#!/bin/bash\n[[ \"$*\" == *--id=00000000:17:00.0* ]] || exit 1\nprintf '90.5\\n[N/A]\\n600.25\\n 610 \\n'; exec sleep 100\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (path, until) = (folder.join("power.csv"), Instant::now() + Duration::from_secs(30));
        let log = PowerLog::start(&program, GPU, path.clone()).unwrap();
        while !fs::read_to_string(&path).unwrap().contains("610") && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(log.watts(), Some(600.25));
        assert!(PowerLog::start(&folder.join("none"), GPU, path).is_none());
        fs::remove_dir_all(folder).unwrap();
    }
}
