//! `plimsoll saturate --devices`: the search once on each device of this host, and what they make of it side by side.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use plimsoll_bench::{Candidate, Devices, Stop};
use plimsoll_ops::gpu;

use crate::device::Device;
use crate::load_line::LoadLine;
use crate::options::SharedOptions;
use crate::report::{self, say};
use crate::saturate::{SaturateOptions, keep, measure};

/// Which devices are measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Every GPU that the driver lists.
    All,
    These(Vec<Device>),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => text.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Self::These),
        }
    }
}

impl Wanted {
    fn list(&self) -> Result<Vec<Device>> {
        match self {
            Self::These(devices) => Ok(devices.clone()),
            Self::All => {
                let count = gpu::count().context("--devices all")?;
                ensure!(count > 0, "--devices all: the driver lists no GPU; give --devices cpu, or leave it out");
                Ok((0..count).map(Device::Cuda).collect())
            }
        }
    }
}

/// Measures one device after another, and says which is slow.
///
/// # Errors
/// A device cannot be used, nothing is served on it, or its report cannot be kept: the others are measured and compared all
/// the same. Those that `stop` leaves unmeasured.
pub(crate) async fn run(shared: SharedOptions, options: SaturateOptions, wanted: &Wanted, stop: &Stop) -> Result<()> {
    let devices = wanted.list()?;
    let names = names(&devices);
    let (mut all, mut lines, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (device, name)) in devices.iter().zip(names).enumerate() {
        if stop.is_set() {
            failed.push(format!("not measured: {name}: interrupted"));
            continue;
        }
        // A headline that cannot be printed keeps no device from being measured.
        say(format_args!("\n{name} ({} of {})", index + 1, devices.len())).ok();
        let shared = SharedOptions { device: Some(*device), ..shared.clone() };
        let report = match measure(&shared, &options, stop).await {
            Ok(report) => report,
            Err(error) => {
                failed.push(format!("not measured: {name}: {error:#}"));
                continue;
            }
        };
        let mut note = |error: anyhow::Error| failed.push(format!("not kept: {name}: {error:#}"));
        let place = options.out.as_ref().map(|folder| folder.join(in_path(&name)));
        keep(&report, place.as_deref(), &options.forms.named(&in_path(&name))).unwrap_or_else(&mut note);
        match options.line(&shared, &report) {
            Ok(line) => lines.extend(line),
            Err(error) => note(error),
        }
        all.push(Candidate { name, report });
    }
    let compared = compare(all, &options);
    let kept = keep_lines(lines);
    failed.extend([compared, kept].into_iter().filter_map(Result::err).map(|error| format!("{error:#}")));
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Shows them side by side.
fn compare(all: Vec<Candidate>, options: &SaturateOptions) -> Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    let summary = Devices::new(all);
    let told = say(format_args!("\n{summary}"));
    told.and(options.forms.html().map_or(Ok(()), |path| report::write(path, &summary.page().to_string())))
}

/// Devices of the same name share a load line, which must hold on each of them: the least is written last, and stays.
///
/// # Errors
/// The first that cannot be written or told; the others are written all the same.
fn keep_lines(mut lines: Vec<LoadLine>) -> Result<()> {
    lines.sort_by_key(|line| std::cmp::Reverse(line.limit().sequences));
    let keep = |line: &LoadLine| say(format_args!("load line: {line} ({})", line.write()?.display()));
    lines.iter().map(keep).fold(Ok(()), Result::and)
}

/// The devices' names, each once.
fn names(devices: &[Device]) -> Vec<String> {
    let name = |(index, device): (usize, &Device)| match devices.iter().filter(|other| *other == device).count() {
        1 => device.to_string(),
        _ => format!("{device} ({})", index + 1),
    };
    devices.iter().enumerate().map(name).collect()
}

/// A name as a part of a path.
fn in_path(name: &str) -> String {
    let letters = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' });
    letters.collect::<String>().trim_matches('-').to_owned()
}

/// `page.html` of `cuda-0` is `page-cuda-0.html`.
pub(crate) fn path_of(path: &Path, name: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|ending| format!(".{}", ending.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{name}{ending}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_or_all() {
        assert_eq!("all".parse(), Ok(Wanted::All));
        let these = Wanted::These(vec![Device::Cuda(0), Device::Cuda(2)]);
        assert_eq!("cuda:0,cuda:2".parse(), Ok(these.clone()));
        assert_eq!("cuda:0, cuda:2".parse(), Ok(these));
        for text in ["", "all,cpu", "cuda:0,", "gpu0"] {
            assert!(text.parse::<Wanted>().unwrap_err().contains("is no device"), "{text}");
        }
    }

    #[test]
    fn each_device_has_a_name_and_files_of_its_own() {
        let names = names(&[Device::Cpu, Device::Cuda(1), Device::Cpu]);
        assert_eq!(names, ["cpu (1)", "cuda:1", "cpu (3)"]);
        assert_eq!(names.iter().map(|name| in_path(name)).collect::<Vec<_>>(), ["cpu--1", "cuda-1", "cpu--3"]);
        assert_eq!(path_of(Path::new("out/page.html"), "cuda-1"), Path::new("out/page-cuda-1.html"));
        assert_eq!(path_of(Path::new("rows"), "cuda-1"), Path::new("rows-cuda-1"));
    }
}
