//! The stand-in for the CUDA driver and its libraries, built from the same objects that these tests link, and called as
//! a client would: by names, through `dlopen`.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// As `cargo xtask emulated-driver` links them.
const LIBRARIES: [(&str, &[&str]); 4] = [
    ("libcuda.so.1", &["driver", "context", "memory", "module", "stream"]),
    ("libcublas.so.13", &["cublas", "matmul"]),
    ("libcublasLt.so.13", &["cublaslt", "matmul"]),
    ("libcurand.so.10", &["curand"]),
];

fn compile(configure: impl FnOnce(&mut Command)) {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut command = Command::new(compiler);
    command.args(["-std=c++17", "-O1", "-pthread"]);
    configure(&mut command);
    assert!(command.status().expect("a C++ compiler").success(), "{command:?}");
}

fn build(folder: &Path) -> PathBuf {
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive = Path::new(env!("OUT_DIR")).join("libplimsoll_emu.a");
    std::fs::create_dir_all(folder).expect("the target folder");
    for (library, parts) in LIBRARIES {
        compile(|command| {
            command.args(["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-rpath,$ORIGIN"]);
            command.arg(format!("-Wl,-soname,{library}")).arg("-o").arg(folder.join(library));
            command.args(parts.iter().map(|part| emulator.join("driver").join(part).with_extension("cpp")));
            if library == "libcuda.so.1" {
                command.arg(&archive);
            } else {
                command.arg(folder.join("libcuda.so.1"));
            }
        });
    }
    let client = folder.join("client");
    compile(|command| {
        command.arg(emulator.join("tests/driver.cpp")).arg("-o").arg(&client).arg("-ldl");
    });
    client
}

#[test]
fn a_client_sees_what_the_driver_api_promises() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
    let client = build(&folder);
    for deferred in ["0", "1"] {
        let output = Command::new(&client)
            .env("LD_LIBRARY_PATH", &folder)
            .env("PLIMSOLL_EMU_ASYNC", deferred)
            .env("PLIMSOLL_EMU_MEMORY", "64M")
            .output()
            .expect("the client just compiled");
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "deferred {deferred}: {}\n{said}\n{told}", output.status);
        assert!(told.contains("no kernel is named ucopy_f32"), "{told}");
        assert!(told.contains("selftest_double: block") && told.contains("out of bounds"), "{told}");
    }
}
