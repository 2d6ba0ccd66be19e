//! `cargo xtask cuda-build`: a binary with CUDA that is built without a GPU and starts on any machine.
//!
//! candle-core as published links libcuda and its like, so that a binary with it does not even start where they are
//! absent, and candle-kernels compiles matrix kernels for 20 minutes that Plimsoll's own replace. This build uses
//! copies of the two crates with just that changed, under `target/cuda-portable`. It never edits the tree: see
//! [`lay_out_workspace`].

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::candle;
use crate::toolkit;

/// What is built, and the programs that come of it.
const PACKAGES: &[&str] = &["plimsoll-cli", "plimsoll-gpu-check"];
pub(crate) const BINARIES: &[&str] = &["plimsoll", "gpu-check"];

/// Where all of this build is, from the project's root.
const TARGET: &str = "target/cuda-portable";

/// All that a portable binary may ask the dynamic loader for.
const NEEDED: &[&str] = &["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"];

/// Where cargo keeps what is not a finished binary.
const BUILD_DIR: &str = "CARGO_BUILD_BUILD_DIR";

/// `cargo xtask cuda-build [--release | --clippy]`.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let release = match arguments[..] {
        [] => false,
        ["--release"] => true,
        ["--clippy"] => return clippy(root),
        _ => bail!("cuda-build takes --release, --clippy or nothing"),
    };
    let started = Instant::now();
    let folder = build(root, release)?;
    for name in BINARIES {
        let binary = folder.join(name);
        println!("{} ({} MiB with symbols)", binary.display(), fs::metadata(&binary)?.len() >> 20);
    }
    println!("built in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Builds the programs, and sees that they start without CUDA; returns their folder.
pub(crate) fn build(root: &Path, release: bool) -> Result<PathBuf> {
    let mut cargo = command(root, "build")?;
    if release {
        cargo.arg("--release");
    }
    finish(cargo)?;
    let folder = root.join(TARGET).join(if release { "release" } else { "debug" });
    BINARIES.iter().try_for_each(|name| check_starts(&folder.join(name)))?;
    Ok(folder)
}

/// What only this build compiles is linted in this build alone.
fn clippy(root: &Path) -> Result<()> {
    let mut cargo = command(root, "clippy")?;
    cargo.args(["--", "-D", "warnings"]);
    finish(cargo)
}

fn finish(mut cargo: Command) -> Result<()> {
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "the CUDA build ended with {status}");
    Ok(())
}

/// cargo in the workspace of links, with all that the build needs laid out.
fn command(root: &Path, verb: &str) -> Result<Command> {
    let toolkit = toolkit::ensure(root)?;
    let target = root.join(TARGET);
    let workspace = target.join("workspace");
    let metadata = metadata(root)?;
    candle::patch_core(&published(&metadata, "candle-core")?, &target.join("candle-core"))?;
    candle::patch_kernels(&published(&metadata, "candle-kernels")?, &target.join("candle-kernels"))?;
    lay_out_workspace(root, &workspace)?;

    let mut cargo = Command::new(cargo());
    cargo.current_dir(workspace).arg(verb).arg("--target-dir").arg(&target).envs(toolkit.environment());
    for name in ["candle-core", "candle-kernels"] {
        let path = target.join(name);
        cargo.arg("--config").arg(format!("patch.crates-io.{name}.path={:?}", path.display().to_string()));
    }
    // Its CPU code is a minute's work for the optimizer, and nothing in this build computes with it; a release does.
    cargo.args(["--config", "profile.dev.package.candle-core.opt-level=0"]);
    for package in PACKAGES {
        cargo.args(["--package", package, "--features", &format!("{package}/cuda")]);
    }
    share_what_is_built(&mut cargo, &metadata);
    Ok(cargo)
}

/// Crates that do not differ between this build and the tree's, most of them, are then compiled once for both. Cargo
/// keeps apart what differs, and finished binaries still go to this build's own folder. Cargo before 1.91 has no such
/// folder, and compiles all.
fn share_what_is_built(cargo: &mut Command, metadata: &Value) {
    if let (Some(folder), None) = (metadata["build_directory"].as_str(), std::env::var_os(BUILD_DIR)) {
        cargo.env(BUILD_DIR, folder);
    }
}

fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

fn metadata(root: &Path) -> Result<Value> {
    let mut metadata = Command::new(cargo());
    metadata.args(["metadata", "--format-version=1", "--locked", "--all-features"]).current_dir(root);
    let output = metadata.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata ended with {}:\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")
}

/// Where cargo unpacked a crate of the registry.
fn published(metadata: &Value, name: &str) -> Result<PathBuf> {
    let of_name = |package: &&Value| package["name"] == name && package["source"].is_string();
    let package = metadata["packages"].as_array().and_then(|all| all.iter().find(of_name));
    let manifest = package.and_then(|package| package["manifest_path"].as_str()).map(Path::new);
    let folder = manifest.and_then(Path::parent).map(Path::to_owned);
    folder.with_context(|| format!("the workspace with all features uses no {name}"))
}

/// A second workspace of symbolic links to this one's folders, with a `Cargo.lock` of its own.
///
/// Cargo writes patched packages into the lock file of the workspace it builds, and has no stable option for another
/// file; with this the tree's `Cargo.lock` stays as it is, whatever happens to the build, and builds of the tree go on
/// beside it. The lock starts as the tree's and is made anew when that changes, so all versions are the tree's.
fn lay_out_workspace(root: &Path, workspace: &Path) -> Result<()> {
    fs::create_dir_all(workspace).with_context(|| format!("cannot make {}", workspace.display()))?;
    for entry in fs::read_dir(workspace)? {
        let path = entry?.path();
        if path.is_symlink() {
            fs::remove_file(path)?;
        }
    }
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        if !text.starts_with('.') && text != "target" && text != "Cargo.lock" {
            symlink(root.join(&name), workspace.join(&name))?;
        }
    }
    let lock = fs::read(root.join("Cargo.lock")).context("the project has no Cargo.lock")?;
    if write_if_new(&workspace.join(".tree.lock"), &lock)? || !workspace.join("Cargo.lock").exists() {
        fs::write(workspace.join("Cargo.lock"), lock)?;
    }
    Ok(())
}

/// Whether there was something to write.
pub(crate) fn write_if_new(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

/// The binary asks the loader for nothing of CUDA's, and runs on this machine.
fn check_starts(binary: &Path) -> Result<()> {
    let output = Command::new("readelf").arg("-d").arg(binary).output().context("cannot start readelf (binutils)")?;
    let needed = needed_libraries(&String::from_utf8_lossy(&output.stdout));
    ensure!(!needed.is_empty(), "readelf names no library that {} needs", binary.display());
    if let Some(other) = needed.iter().find(|name| !NEEDED.contains(&name.as_str())) {
        bail!("{} needs {other}, so it does not start on every machine", binary.display());
    }
    let output = Command::new(binary).arg("--version").output();
    let output = output.with_context(|| format!("cannot start {}", binary.display()))?;
    ensure!(output.status.success(), "{} --version ended with {}", binary.display(), output.status);
    Ok(())
}

/// The names in readelf's lines "0x... (NEEDED)  Shared library: [libm.so.6]".
fn needed_libraries(readelf: &str) -> Vec<String> {
    let of_line = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    readelf.lines().filter(|line| line.contains("(NEEDED)")).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readelfs_lines_give_the_libraries() {
        let said = "Dynamic section at offset 0x1 contains 30 entries:\n\
                    \x20 Tag        Type                         Name/Value\n\
                    \x200x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]\n\
                    \x200x0000000000000001 (NEEDED)             Shared library: [libcuda.so.1]\n\
                    \x200x000000000000000c (INIT)               0x4000\n";
        assert_eq!(needed_libraries(said), ["libgcc_s.so.1", "libcuda.so.1"]);
    }

    #[test]
    fn only_a_registrys_crate_is_a_published_one() {
        let metadata = serde_json::json!({"packages": [
            {"name": "candle-core", "source": null, "manifest_path": "/patched/Cargo.toml"},
            {"name": "candle-core", "source": "registry+https://x", "manifest_path": "/registry/candle-core/Cargo.toml"},
        ]});
        assert_eq!(published(&metadata, "candle-core").unwrap(), Path::new("/registry/candle-core"));
        let error = published(&metadata, "candle-kernels").unwrap_err().to_string();
        assert!(error.contains("candle-kernels"), "{error}");
    }

    #[test]
    fn what_did_not_change_is_not_written() {
        let path = std::env::temp_dir().join(format!("plimsoll-new-{}/a/b", std::process::id()));
        assert!(write_if_new(&path, b"one").unwrap());
        assert!(!write_if_new(&path, b"one").unwrap());
        assert!(write_if_new(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::remove_dir_all(path.ancestors().nth(2).unwrap()).unwrap();
    }
}
