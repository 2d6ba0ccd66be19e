//! Which crate may depend on which: the arrows of ARCHITECTURE.md.

use std::path::Path;

use anyhow::{Context, Result};

/// Each crate's folder and the crates it may name in `[dependencies]`. Dev-dependencies are free.
const ALLOWED: &[(&str, &[&str])] = &[
    ("crates/core", &[]),
    ("crates/sched", &["core"]),
    ("crates/sim", &["core", "sched"]),
    ("kernels", &[]),
    ("kernels/emu", &["kernels"]),
    ("kernels/checks", &["kernels", "ops"]),
    ("crates/ops", &["kernels"]),
    ("crates/nn", &["ops"]),
    ("models", &["nn", "ops"]),
    ("crates/runner", &["core", "nn", "ops"]),
    ("crates/engine", &["core", "sched"]),
    ("crates/text", &["core"]),
    ("crates/api", &[]),
    ("crates/server", &["api", "core", "engine", "text"]),
    ("crates/endpoint", &[]),
    ("crates/bench", &["api", "endpoint"]),
    ("crates/eval", &["endpoint"]),
    (
        "crates/cli",
        &["api", "bench", "core", "engine", "eval", "models", "nn", "ops", "runner", "sched", "server", "sim", "text"],
    ),
    ("crates/gpu-check", &["core", "kernel-checks", "kernels", "models", "nn", "ops", "runner", "sched"]),
    ("crates/xtask", &[]),
];

/// Crates that own no thread, clock or random source: what they may not depend on, beyond the workspace's own.
const PURE: &[(&str, &[&str])] = &[("crates/core", &[]), ("crates/sched", &["thiserror"])];

pub(crate) fn check(root: &Path, complaints: &mut Vec<String>) -> Result<()> {
    for folder in members(root)? {
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == folder) else {
            complaints.push(format!("{folder}: not in the list of edges (crates/xtask/src/edges.rs)"));
            continue;
        };
        for dependency in dependencies(root, &folder)? {
            check_one(&folder, &dependency, allowed, complaints);
        }
    }
    Ok(())
}

fn check_one(folder: &str, dependency: &str, allowed: &[&str], complaints: &mut Vec<String>) {
    if let Some(name) = dependency.strip_prefix("plimsoll-") {
        if !allowed.contains(&name) {
            complaints.push(format!("{folder}: may not depend on {dependency} (see ARCHITECTURE.md)"));
        }
        return;
    }
    let pure = PURE.iter().find(|(name, _)| *name == folder);
    if pure.is_some_and(|(_, outside)| !outside.contains(&dependency)) {
        complaints.push(format!("{folder}: is pure and may not depend on {dependency}"));
    }
}

fn members(root: &Path) -> Result<Vec<String>> {
    let mut folders: Vec<String> = ["models", "kernels", "kernels/emu", "kernels/checks"].map(str::to_owned).into();
    for entry in std::fs::read_dir(root.join("crates"))? {
        folders.push(format!("crates/{}", entry?.file_name().to_string_lossy()));
    }
    folders.sort();
    Ok(folders)
}

fn dependencies(root: &Path, folder: &str) -> Result<Vec<String>> {
    let path = root.join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: toml::Table = text.parse().with_context(|| format!("cannot parse {}", path.display()))?;
    let table = manifest.get("dependencies").and_then(toml::Value::as_table);
    Ok(table.map(|t| t.keys().cloned().collect()).unwrap_or_default())
}
