//! `cargo xtask kernels`: compiles every CUDA kernel for every architecture Plimsoll supports, without a GPU, and fails
//! on registers that spill to memory.
//!
//! The reports are kept in `target/cuda-kernels` under a hash of all that goes into them, so a second run compiles
//! nothing. The binaries made here are thrown away: `kernels/build.rs` makes those that ship.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::portable::write_if_new;
use crate::ptxas::{self, Report};
use crate::toolkit;

const ARCHITECTURES: &[&str] = &["sm_80", "sm_89", "sm_90a"];

/// nvcc takes up to 2 GB for a large file; more at a time would not fit small machines.
const AT_A_TIME: usize = 2;

/// One file to compile, and where its report is kept.
struct Job {
    source: PathBuf,
    report: PathBuf,
}

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "kernels takes no arguments");
    let started = Instant::now();
    let toolkit = toolkit::ensure(root)?;
    let cache = root.join("target/cuda-kernels");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let jobs = jobs(root, &cache, &toolkit::nvcc_version(&toolkit.home)?)?;
    let stale: Vec<&Job> = jobs.iter().filter(|job| !job.report.exists()).collect();
    compile_all(&toolkit.nvcc(), &root.join("kernels/include"), &stale)?;
    remove_old_reports(&cache, &jobs)?;

    let report = read_reports(&jobs)?;
    println!("{}", ptxas::table(&report, ARCHITECTURES));
    write_if_new(&cache.join("report.json"), ptxas::to_json(&report).to_string().as_bytes())?;
    judge(root, &report)?;
    let seconds = started.elapsed().as_secs();
    println!("{} files, {} compiled now, {seconds} s; no spill without a reason", jobs.len(), stale.len());
    Ok(())
}

fn judge(root: &Path, report: &Report) -> Result<()> {
    let list = root.join("kernels/spills.toml");
    let excuses = match fs::read_to_string(&list) {
        Ok(text) => ptxas::parse_excuses(&text).with_context(|| list.display().to_string())?,
        Err(_) => Vec::new(),
    };
    let complaints = ptxas::complaints(report, &excuses);
    if !complaints.is_empty() {
        bail!(
            "registers spill, or a stack frame is there; mend the kernel, or excuse it in kernels/spills.toml with a \
             reason:\n{}",
            complaints.join("\n")
        );
    }
    Ok(())
}

fn jobs(root: &Path, cache: &Path, version: &str) -> Result<Vec<Job>> {
    let mut common = DefaultHasher::new();
    (version, flags()).hash(&mut common);
    for header in files_of(&root.join("kernels/include"), &["cuh", "h"])? {
        (header.file_name(), fs::read(&header)?).hash(&mut common);
    }
    let mut jobs = Vec::new();
    for source in files_of(&root.join("kernels/src"), &["cu"])? {
        let mut hasher = common.clone();
        fs::read(&source)?.hash(&mut hasher);
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let report = cache.join(format!("{stem}-{:016x}.txt", hasher.finish()));
        jobs.push(Job { source, report });
    }
    Ok(jobs)
}

/// The files of a folder and the folders in it, in order. No folder, no files.
fn files_of(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop().filter(|folder| folder.exists()) {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|extension| e == *extension)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn flags() -> Vec<String> {
    let mut flags: Vec<String> =
        ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xptxas", "-v", "-fatbin"].map(str::to_owned).into();
    for arch in ARCHITECTURES {
        flags.push(format!("-gencode=arch={},code={arch}", arch.replace("sm_", "compute_")));
    }
    flags
}

fn compile_all(nvcc: &Path, include: &Path, jobs: &[&Job]) -> Result<()> {
    let queue = Mutex::new(jobs.iter());
    let failures = Mutex::new(Vec::new());
    let next = || queue.lock().ok()?.next();
    let work = || {
        while let Some(job) = next() {
            eprintln!("nvcc {}", job.source.display());
            if let (Err(error), Ok(mut failures)) = (compile(nvcc, include, job), failures.lock()) {
                failures.push(format!("{error:#}"));
            }
        }
    };
    std::thread::scope(|scope| (0..AT_A_TIME).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap_or_default();
    ensure!(failures.is_empty(), "{} of {} files do not compile:\n{}", failures.len(), jobs.len(), failures.join("\n"));
    Ok(())
}

/// Leaves the report of ptxas, or fails with what nvcc said.
fn compile(nvcc: &Path, include: &Path, job: &Job) -> Result<()> {
    let binary = job.report.with_extension("fatbin");
    let mut command = Command::new(nvcc);
    command.args(flags()).arg("-I").arg(include).arg("-o").arg(&binary).arg(&job.source);
    let output = command.output().context("cannot start nvcc")?;
    let _ = fs::remove_file(&binary);
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{}:\n{}", job.source.display(), said.trim());
    write_if_new(&job.report, said.as_bytes())?;
    Ok(())
}

fn remove_old_reports(cache: &Path, jobs: &[Job]) -> Result<()> {
    for entry in fs::read_dir(cache)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "txt") && !jobs.iter().any(|job| job.report == path) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn read_reports(jobs: &[Job]) -> Result<Report> {
    let mut all = Report::new();
    for job in jobs {
        let file = job.source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&job.report)?;
        let (report, warnings) = ptxas::parse(&text).with_context(|| file.clone())?;
        for warning in warnings {
            println!("{file}: {warning}");
        }
        ptxas::merge(&mut all, &file, report)?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A project's root with these kernels, removed at the end.
    struct Project(PathBuf);

    impl Project {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("plimsoll-{name}-{}", std::process::id()));
            for (name, text) in files {
                write_if_new(&root.join(name), text.as_bytes()).unwrap();
            }
            Self(root)
        }

        fn reports(&self) -> Vec<PathBuf> {
            jobs(&self.0, &self.0, "13.0").unwrap().into_iter().map(|job| job.report).collect()
        }
    }

    impl Drop for Project {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_report_is_kept_while_nothing_that_goes_into_it_changes() {
        let project = Project::new("kept", &[("kernels/src/a.cu", "a"), ("kernels/src/b.cu", "b")]);
        let before = project.reports();
        assert_eq!(before.len(), 2);
        assert_eq!(before, project.reports());
        fs::write(project.0.join("kernels/src/a.cu"), "a2").unwrap();
        let after = project.reports();
        assert!(before[0] != after[0] && before[1] == after[1]);
        write_if_new(&project.0.join("kernels/include/device.cuh"), b"new").unwrap();
        let with_header = project.reports();
        assert!(after[0] != with_header[0] && after[1] != with_header[1]);
    }

    #[test]
    fn a_project_without_kernels_has_nothing_to_compile() {
        let project = Project::new("none", &[("Cargo.toml", "")]);
        assert!(project.reports().is_empty());
    }

    #[test]
    fn only_an_excused_spill_passes() {
        let project = Project::new("excused", &[("Cargo.toml", "")]);
        let (report, _) = ptxas::parse(include_str!("../testdata/ptxas-13.0.txt")).unwrap();
        let error = judge(&project.0, &report).unwrap_err().to_string();
        assert!(error.contains("spills on sm_90a: stack frame 528"), "{error}");
        let excuse = |kernel, arch| format!("[[allowed]]\nkernel = \"{kernel}\"\narch = \"{arch}\"\nreason = \"r\"\n");
        let mut list = excuse("spills", "sm_80") + &excuse("spills", "sm_90a");
        list += &ARCHITECTURES.iter().map(|arch| excuse("indexed", arch)).collect::<String>();
        write_if_new(&project.0.join("kernels/spills.toml"), list.as_bytes()).unwrap();
        judge(&project.0, &report).unwrap();
    }
}
