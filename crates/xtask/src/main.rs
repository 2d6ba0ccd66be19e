//! Chores of the project: `cargo xtask tidy` checks the house rules, `cargo xtask ci` runs what CI runs,
//! `cargo xtask golden` makes the golden data anew, `cargo xtask cuda-toolkit` finds nvcc or fetches it.
//!
//! It must never be needed to build or run Plimsoll.

mod candle;
mod cuda_test;
mod edges;
mod emulated_driver;
mod kernels;
mod pack;
mod portable;
mod ptxas;
mod tidy;
mod toolkit;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const HELP: &str = "\
cargo xtask tidy     check the house rules: dependency edges, file lengths, module docs
cargo xtask ci       fmt, clippy, tidy and tests, as CI runs them
cargo xtask golden   make tests/golden anew (python3; installs torch and transformers into target/golden-venv)
cargo xtask cuda-toolkit [--env]   find nvcc, or assemble it from PyPI in target/cuda-toolkit; print where it is
cargo xtask kernels                    compile every CUDA kernel for each architecture; fail on register spills
cargo xtask cuda-build [--release]     build plimsoll with CUDA, without a GPU, as target/cuda-portable/*/plimsoll
cargo xtask cuda-build --clippy        lint what only that build compiles
cargo xtask emulated-driver            build a stand-in for the CUDA driver that runs the kernels in the emulator
cargo xtask cuda-test                  run the CUDA build over that stand-in: golden models, and the server
cargo xtask gpu-check                  pack target/gpu-check, which checks and measures this tree on a GPU host";

fn main() -> ExitCode {
    match chore(&root()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(root: &Path) -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    match std::env::args().nth(1).as_deref() {
        Some("tidy") => tidy::run(root),
        Some("ci") => run("bash", &[".ci/run"], root),
        Some("golden") => golden(root),
        Some("kernels") => kernels::run(root, &arguments),
        Some("emulated-driver") => emulated_driver::run(root),
        Some("gpu-check") => pack::run(root, &arguments),
        Some("cuda-build") => portable::run(root, &arguments),
        Some("cuda-test") => cuda_test::run(root),
        Some("cuda-toolkit") => toolkit::run(root, &arguments),
        Some("help" | "--help" | "-h") | None => {
            println!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("there is no chore '{other}'; these are:\n{HELP}"),
    }
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

fn golden(root: &Path) -> Result<()> {
    let venv = root.join("target/golden-venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        run("python3", &["-m", "venv", "target/golden-venv"], root)?;
        let packages = ["-m", "pip", "install", "torch", "transformers", "safetensors", "gguf", "numpy"];
        run(&python.to_string_lossy(), &packages, root)?;
    }
    run(&python.to_string_lossy(), &["tests/golden/make_golden.py"], root)
}

fn run(program: &str, arguments: &[&str], root: &Path) -> Result<()> {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot start {program}; is it installed?"))?;
    if !status.success() {
        bail!("{program} {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}
