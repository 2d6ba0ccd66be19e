//! With the feature `cuda`: compiles every `src/*.cu` with nvcc to a fat binary for the GPUs that are served, and writes
//! a table of them. Without it: nothing, so that no toolkit is needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Ampere (A100), Ada (L4, L40S), Hopper (H100, H200).
const ARCHITECTURES: &str = "80,89,90a";

/// For GPUs that came later: the driver compiles it when the program starts.
const PORTABLE: &str = "-gencode=arch=compute_90,code=compute_90";

fn main() {
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=include");
    for variable in ["CUDA_HOME", "CUDA_PATH", "PLIMSOLL_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let mut sources: Vec<PathBuf> = fs::read_dir("src")
        .expect("src")
        .map(|entry| entry.expect("src").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    sources.sort();
    let jobs: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    for batch in sources.chunks(jobs.max(1)) {
        let running: Vec<_> = batch.iter().map(|source| (source, compile(source, &out))).collect();
        for (source, mut child) in running {
            let status = child.wait().expect("nvcc");
            assert!(status.success(), "nvcc failed on {}", source.display());
        }
    }
    fs::write(out.join("modules.rs"), table(&sources)).expect("OUT_DIR");
}

fn compile(source: &Path, out: &Path) -> std::process::Child {
    let architectures = env::var("PLIMSOLL_CUDA_ARCHS").unwrap_or_else(|_| ARCHITECTURES.to_owned());
    let mut nvcc = Command::new(nvcc());
    nvcc.args(["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-fatbin", "--compress-mode=size", "-Iinclude"]);
    for architecture in architectures.split(',') {
        nvcc.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    if env::var("PROFILE").as_deref() == Ok("debug") {
        nvcc.arg("-DKERNEL_CHECKS");
    }
    nvcc.arg(PORTABLE).arg(source).arg("-o").arg(out.join(stem(source)).with_extension("fatbin"));
    nvcc.spawn().unwrap_or_else(|error| {
        panic!(
            "cannot run {:?}: {error}; install CUDA 13, or set CUDA_HOME to what `cargo xtask cuda-toolkit` prints",
            nvcc
        )
    })
}

fn nvcc() -> PathBuf {
    let home = env::var_os("CUDA_HOME").or_else(|| env::var_os("CUDA_PATH"));
    home.map_or_else(|| PathBuf::from("nvcc"), |home| Path::new(&home).join("bin/nvcc"))
}

fn stem(source: &Path) -> String {
    source.file_stem().expect("a file").to_string_lossy().into_owned()
}

/// Rust source: each fat binary and the entry points in it.
fn table(sources: &[PathBuf]) -> String {
    let mut text = String::from("&[\n");
    for source in sources {
        let code = fs::read_to_string(source).expect("a source");
        let fatbin = format!("&Aligned(*include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{}.fatbin\")))", stem(source));
        text += &format!("    Module {{ fatbin: {fatbin}, kernels: &{:?} }},\n", entry_points(&code));
    }
    text + "]\n"
}

/// Names of the kernels that a source defines, each on one line.
fn entry_points(code: &str) -> Vec<&str> {
    let declared = code.lines().filter_map(|line| line.strip_prefix("extern \"C\" __global__ void "));
    declared
        .map(|rest| match rest.strip_prefix("__launch_bounds__(") {
            Some(bounds) => bounds.split_once(')').map_or(rest, |(_, name)| name.trim_start()),
            None => rest,
        })
        .map(|rest| rest.split('(').next().unwrap_or(rest).trim())
        .collect()
}
