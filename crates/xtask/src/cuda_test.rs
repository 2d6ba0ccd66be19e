//! `cargo xtask cuda-test`: builds Plimsoll with CUDA and the stand-ins for CUDA's libraries, and runs the one over the
//! other: linear layers and golden models, and the server under tests/cuda.rs. Neither a GPU nor a toolkit is needed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{emulated_driver, portable};

pub(crate) fn run(root: &Path) -> Result<()> {
    let driver = root.join("target/emulated-driver");
    emulated_driver::build(root, &driver)?;
    let binaries = portable::build(root, false)?;
    let mut check = Command::new(binaries.join("gpu-check"));
    check.args(["run", "golden", "--seconds", "900", "--out"]).arg(root.join("target/cuda-test"));
    check.arg("--data").arg(root).env("LD_LIBRARY_PATH", &driver);
    succeed(&mut check, "the golden models on the stand-in GPU")?;
    let mut tests = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    tests.args(["test", "--package", "plimsoll-cli", "--test", "cuda"]).current_dir(root);
    tests.env("PLIMSOLL_CUDA_BINARY", binaries.join("plimsoll")).env("PLIMSOLL_EMULATED_DRIVER", &driver);
    succeed(&mut tests, "tests/cuda.rs")
}

fn succeed(command: &mut Command, what: &str) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {what}"))?;
    ensure!(status.success(), "{what}: ended with {status}");
    Ok(())
}
