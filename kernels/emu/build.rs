//! Compiles the kernels and the emulator's runtime with the host's C++ compiler into one archive.

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "build/sources.rs"]
mod sources;

fn main() {
    println!("cargo:rustc-check-cfg=cfg(emulated)");
    for path in ["build", "build.rs", "include", "runtime", "tests", "../include", "../src"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Elsewhere than on Linux nothing is compiled, and launches say so.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-cfg=emulated");
        compile();
    }
}

fn compile() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let emulator = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let kernels = emulator.parent().expect("kernels").to_owned();
    let mut all = sources::kernels_in(&kernels.join("src")).expect("kernels/src");
    all.extend(sources::kernels_in(&emulator.join("tests")).expect("kernels/emu/tests"));

    let runtime = emulator.join("runtime");
    let mut checked = compiler();
    checked.include(kernels.join("include")).include(&runtime);
    for folder in sources::header_folders(&kernels) {
        println!("cargo:rerun-if-changed={}", folder.display());
        checked.flag("-isystem").flag(folder);
    }
    let clang = checked.get_compiler().is_like_clang();
    for flag in sources::KERNEL_FLAGS.iter().chain(sources::volatile_flags(clang)) {
        checked.flag(flag);
    }
    for unit in &all {
        checked.file(write(&out, &unit.source, &sources::translation_unit(unit)));
    }
    let mut plain = compiler();
    plain.include(&runtime).files(sources::files(&runtime, "cpp").expect("runtime"));
    plain.file(write(&out, Path::new("table"), &sources::table(&all)));
    for object in checked.compile_intermediates() {
        plain.object(object);
    }
    plain.compile("plimsoll_emu");
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).pic(true).debug(false);
    build
}

fn write(out: &Path, named_after: &Path, text: &str) -> PathBuf {
    let stem = named_after.file_stem().expect("a name").to_string_lossy();
    let path = out.join(format!("emulated_{stem}.cpp"));
    fs::write(&path, text).expect("OUT_DIR");
    path
}
