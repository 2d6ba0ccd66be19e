//! The stand-ins for NVIDIA's number headers convert as those do, for all codes of bf16, half and fp8, and for floats at
//! every rounding boundary. Needs a toolkit: CUDA_HOME, or `cargo xtask cuda-toolkit`.

#![cfg(target_os = "linux")]

use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(dead_code, reason = "a test needs one function of those that the build script shares")]
#[path = "../build/sources.rs"]
mod sources;

fn conversions(name: &str, include: &[PathBuf]) -> Vec<u64> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/headers.cpp");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let mut compile = Command::new(compiler);
    compile.args(["-std=c++17", "-O1", "-w"]).arg(source).arg("-o").arg(&program);
    for folder in include {
        compile.arg("-isystem").arg(folder);
    }
    assert!(compile.status().expect("a C++ compiler").success());
    let output = Command::new(&program).output().expect("the program just compiled");
    output.stdout.as_chunks().0.iter().map(|&bytes| u64::from_ne_bytes(bytes)).collect()
}

#[test]
fn stand_ins_convert_as_the_toolkit_does() {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    let found = sources::header_folders(&own.join("../..").canonicalize().expect("kernels"));
    let stand_ins = conversions("headers-own", &[own]);
    assert_eq!(stand_ins.len(), 65536 * (4 + 8 + 12 * 6) + 512);
    if found.len() < 2 {
        println!("not compared: no CUDA toolkit here");
        return;
    }
    let toolkit = conversions("headers-toolkit", &found);
    let different = stand_ins.iter().zip(&toolkit).position(|(a, b)| a != b);
    if let Some(at) = different {
        let place = if at < 65536 * 84 { format!("code {:#x}, value {}", at / 84, at % 84) } else { "fp8".to_owned() };
        panic!("{place}: {:#x} here, {:#x} in the toolkit", stand_ins[at], toolkit[at]);
    }
    assert_eq!(stand_ins.len(), toolkit.len());
}
