//! `cargo xtask gpu-check`: a folder that checks and measures this tree on a GPU host without cargo or a network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::portable::{self, BINARIES};

/// What fits everywhere such a folder is sent.
const MOST_BYTES: u64 = 60 << 20;

pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "gpu-check takes no arguments");
    let binaries = portable::build(root, true)?;
    let folder = root.join("target/gpu-check");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
    for name in BINARIES {
        strip(&binaries.join(name), &folder.join(name))?;
    }
    copy(&root.join("crates/gpu-check/run.sh"), &folder.join("run.sh"))?;
    copy_files(&root.join("configs/architectures"), &folder.join("configs/architectures"), &["json"])?;
    for case in golden_cases(&root.join("tests/golden"))? {
        let name = case.file_name().unwrap_or_default();
        copy_files(&case, &folder.join("tests/golden").join(name), &["json", "safetensors", "gguf"])?;
    }
    fs::write(folder.join("about.json"), about(root)?)?;
    let bytes = size(&folder)?;
    ensure!(bytes <= MOST_BYTES, "{} has {} MiB, {} are allowed", folder.display(), bytes >> 20, MOST_BYTES >> 20);
    let archive = archive(&folder)?;
    println!("{} ({} MiB), {} ({} MiB)", folder.display(), bytes >> 20, archive.display(), size(&archive)? >> 20);
    println!("on a GPU host: tar -xzf gpu-check.tar.gz && gpu-check/run.sh");
    Ok(())
}

fn strip(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("strip").arg("-o").arg(to).arg(from).status();
    let status = status.context("cannot start strip; install binutils")?;
    ensure!(status.success(), "strip ended with {status}");
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// The files of one folder with one of these endings.
fn copy_files(from: &Path, to: &Path, extensions: &[&str]) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("no {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| extensions.iter().any(|extension| e == *extension)) {
            copy(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}

/// The recorded checkpoints' folders.
fn golden_cases(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {}", folder.display()))?;
    let folders: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    Ok(folders.into_iter().filter(|case| case.join("golden.safetensors").exists()).collect())
}

/// What was built, for whoever reads the results.
fn about(root: &Path) -> Result<String> {
    let git = |arguments: &[&str]| -> Result<String> {
        let output = Command::new("git").args(arguments).current_dir(root).output().context("cannot start git")?;
        ensure!(output.status.success(), "git {} ended with {}", arguments.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    let about = serde_json::json!({
        "commit": git(&["rev-parse", "HEAD"])?, "committed": git(&["log", "-1", "--format=%cI"])?,
        "with_changes": changed,
    });
    Ok(format!("{about:#}\n"))
}

fn size(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(fs::metadata(path)?.len());
    }
    fs::read_dir(path)?.map(|entry| size(&entry?.path())).sum()
}

fn archive(folder: &Path) -> Result<PathBuf> {
    let archive = folder.with_extension("tar.gz");
    let (parent, name) = (folder.parent().context("a folder above")?, folder.file_name().context("a name")?);
    let status = Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(parent).arg(name).status();
    let status = status.context("cannot start tar")?;
    ensure!(status.success(), "tar ended with {status}");
    Ok(archive)
}
