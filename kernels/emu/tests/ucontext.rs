//! The portable switch between threads, which other machines than x86-64 use, tested on any.

#![cfg(target_os = "linux")]

use std::path::Path;
use std::process::Command;

#[allow(dead_code, reason = "a test needs one function of those that the build script shares")]
#[path = "../build/sources.rs"]
mod sources;

#[test]
fn kernels_run_on_ucontext() {
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ucontext");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O1", "-pthread", "-DEMU_UCONTEXT"]).arg(emulator.join("tests/ucontext.cpp"));
    // The runtime anew; from the archive come the kernels alone.
    command.args(sources::files(&emulator.join("runtime"), "cpp").expect("runtime"));
    command.arg(Path::new(env!("OUT_DIR")).join("libplimsoll_emu.a")).arg("-o").arg(&program);
    assert!(command.status().expect("a C++ compiler").success(), "{command:?}");
    let output = Command::new(&program).output().expect("the program just compiled");
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
}
