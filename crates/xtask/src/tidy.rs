//! The house rules that a compiler does not check. Each complaint names the file and what to change.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::edges;

/// A file that nears this usually holds two rooms.
const MAX_LINES: usize = 600;

/// Where code may differ by the feature `cuda`.
const CUDA_ROOMS: &[&str] = &["crates/ops/", "crates/runner/", "crates/gpu-check/", "kernels/"];

/// What a pure crate's sources may not name: time and chance come from outside.
const IMPURE: &[&str] = &["std::time", "Instant::now", "SystemTime", "thread_rng", "rand::", "tokio::", "candle"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let mut complaints = Vec::new();
    edges::check(root, &mut complaints)?;
    for path in sources(root)? {
        check_source(root, &path, &mut complaints)?;
    }
    check_code_map(root, &mut complaints)?;
    if complaints.is_empty() {
        println!("tidy");
        return Ok(());
    }
    bail!("{} complaints:\n{}", complaints.len(), complaints.join("\n"))
}

fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for top in ["crates", "models", "kernels", "tests"] {
        let folder = root.join(top);
        if folder.exists() {
            walk(&folder, &mut found)?;
        }
    }
    found.sort();
    Ok(found)
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "rs" || e == "cu" || e == "cuh" || e == "py") {
            found.push(path);
        }
    }
    Ok(())
}

fn check_source(root: &Path, path: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
    let mut complain = |what: String| complaints.push(format!("{name}: {what}"));

    let lines = text.lines().count();
    if lines > MAX_LINES {
        complain(format!("{lines} lines; over {MAX_LINES} a file usually holds two rooms: split it"));
    }
    if name.ends_with(".rs") && !text.starts_with("//!") {
        complain("starts without a module doc (//!) that says what it is for".to_owned());
    }
    let gate = concat!("feature = ", "\"cuda\"");
    if text.contains(gate) && !CUDA_ROOMS.iter().any(|room| name.starts_with(room)) {
        complain(format!("names {gate}, which stands only in {CUDA_ROOMS:?}"));
    }
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")] {
        if text.contains(mark) {
            complain(format!("holds a {mark}: do it, or say plainly what does not hold"));
        }
    }
    if name.starts_with("crates/core/src") || name.starts_with("crates/sched/src") {
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        for word in IMPURE.iter().filter(|word| code.contains(**word)) {
            complain(format!("names {word}, but this crate is pure"));
        }
    }
    Ok(())
}

/// Every crate has a line in ARCHITECTURE.md's code map.
fn check_code_map(root: &Path, complaints: &mut Vec<String>) -> Result<()> {
    let map = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md is missing")?;
    for entry in std::fs::read_dir(root.join("crates"))? {
        let name = format!("crates/{}", entry?.file_name().to_string_lossy());
        if !map.contains(&name) {
            complaints.push(format!("ARCHITECTURE.md: its code map does not name {name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Tidy is a test too, so that `cargo test` alone finds an untidy house.

    #[test]
    fn the_house_is_tidy() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        super::run(&root).unwrap_or_else(|complaints| panic!("{complaints}"));
    }
}
