//! `cargo xtask emulated-driver`: builds a stand-in for the CUDA driver and its libraries that runs Plimsoll's kernels in
//! the emulator, so that the CUDA build runs where there is no GPU: `LD_LIBRARY_PATH=target/emulated-driver plimsoll ..`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

#[path = "../../../kernels/emu/build/sources.rs"]
mod sources;

/// Each library and its sources in `kernels/emu/driver`; the first one also holds the emulator and the kernels.
const LIBRARIES: [(&str, &[&str]); 4] = [
    ("libcuda.so.1", &["driver", "context", "memory", "module", "stream"]),
    ("libcublas.so.13", &["cublas", "matmul"]),
    ("libcublasLt.so.13", &["cublaslt", "matmul"]),
    ("libcurand.so.10", &["curand"]),
];

/// What all C++ is compiled with. The products are worth optimizing; their bits must not depend on the machine.
const FLAGS: &[&str] = &["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"];

pub(crate) fn run(root: &Path) -> Result<()> {
    let out = root.join("target/emulated-driver");
    build(root, &out)?;
    println!("{}", out.canonicalize()?.display());
    Ok(())
}

/// Brings the libraries in `out` up to date.
pub(crate) fn build(root: &Path, out: &Path) -> Result<()> {
    let kernels = root.join("kernels").canonicalize().context("no folder kernels")?;
    fs::create_dir_all(out)?;
    if is_current(&kernels, out)? {
        return Ok(());
    }
    let built = out.join("build");
    fs::create_dir_all(&built)?;
    let mut compiler = Compiler::new();
    let mut first = emulator_objects(&mut compiler, &kernels, &built)?;
    for source in sources::files(&kernels.join("emu/driver"), "cpp")? {
        let part = source.file_stem().unwrap_or_default().to_string_lossy();
        compiler.compile(&source, &built.join(format!("driver_{part}.o")), &[])?;
    }
    compiler.wait()?;
    for (library, parts) in LIBRARIES {
        let own = parts.iter().map(|part| built.join(format!("driver_{part}.o")));
        let all: Vec<PathBuf> = own.chain(first.drain(..)).collect();
        link(library, &all, out)?;
    }
    Ok(())
}

/// The emulator's runtime, and the kernels.
fn emulator_objects(compiler: &mut Compiler, kernels: &Path, built: &Path) -> Result<Vec<PathBuf>> {
    let all = sources::kernels_in(&kernels.join("src"))?;
    let runtime = kernels.join("emu/runtime");
    let mut flags: Vec<String> = sources::KERNEL_FLAGS.iter().map(|&flag| flag.to_owned()).collect();
    flags.extend(sources::volatile_flags(compiler.is_clang).iter().map(|&flag| flag.to_owned()));
    flags.extend(["-O2".to_owned(), format!("-I{}", kernels.join("include").display())]);
    flags.push(format!("-I{}", runtime.display()));
    flags.extend(sources::header_folders(kernels).iter().map(|folder| format!("-isystem{}", folder.display())));
    let mut objects = Vec::new();
    for unit in &all {
        let stem = unit.source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let source = built.join(format!("kernel_{stem}.cpp"));
        fs::write(&source, sources::translation_unit(unit))?;
        objects.push(compiler.compile(&source, &source.with_extension("o"), &flags)?);
    }
    let table = built.join("table.cpp");
    fs::write(&table, sources::table(&all))?;
    for source in sources::files(&runtime, "cpp")?.iter().chain([&table]) {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy();
        let include = [format!("-I{}", runtime.display())];
        objects.push(compiler.compile(source, &built.join(format!("runtime_{stem}.o")), &include)?);
    }
    Ok(objects)
}

fn link(library: &str, objects: &[PathBuf], out: &Path) -> Result<()> {
    let mut command = Command::new(compiler());
    command.args(["-shared", "-pthread"]).arg(format!("-Wl,-soname,{library}")).arg("-Wl,-rpath,$ORIGIN");
    command.args(objects).arg("-o").arg(out.join(library));
    if library != LIBRARIES[0].0 {
        command.arg(out.join(LIBRARIES[0].0));
    }
    let status = command.status().context("cannot start the C++ compiler")?;
    if !status.success() {
        bail!("linking {library} ended with {status}");
    }
    Ok(())
}

fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned())
}

/// Compiles as many files side by side as the machine has cores.
struct Compiler {
    running: Vec<(PathBuf, Child)>,
    is_clang: bool,
}

impl Compiler {
    fn new() -> Self {
        let version = Command::new(compiler()).arg("--version").output();
        let is_clang = version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("clang"));
        Self { running: Vec::new(), is_clang }
    }

    fn compile(&mut self, source: &Path, object: &Path, flags: &[String]) -> Result<PathBuf> {
        if self.running.len() >= std::thread::available_parallelism().map_or(1, |n| n.get()) {
            self.finish_first()?;
        }
        let mut command = Command::new(compiler());
        command.args(FLAGS).args(flags).arg("-c").arg(source).arg("-o").arg(object);
        let child = command.spawn().context("cannot start a C++ compiler: install g++ or clang, or set CXX")?;
        self.running.push((source.to_owned(), child));
        Ok(object.to_owned())
    }

    fn finish_first(&mut self) -> Result<()> {
        let (source, mut child) = self.running.remove(0);
        let status = child.wait()?;
        if !status.success() {
            bail!("compiling {} ended with {status}", source.display());
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        while !self.running.is_empty() {
            self.finish_first()?;
        }
        Ok(())
    }
}

/// Whether all libraries are there and newer than everything they are made of.
fn is_current(kernels: &Path, out: &Path) -> Result<bool> {
    let mut oldest = SystemTime::now();
    for (library, _) in LIBRARIES {
        match fs::metadata(out.join(library)).and_then(|file| file.modified()) {
            Ok(time) => oldest = oldest.min(time),
            Err(_) => return Ok(false),
        }
    }
    let inputs = ["src", "include", "emu/runtime", "emu/driver", "emu/include", "emu/build"];
    Ok(inputs
        .iter()
        .map(|folder| newest(&kernels.join(folder)))
        .collect::<Result<Vec<_>>>()?
        .iter()
        .all(|t| *t < oldest))
}

fn newest(folder: &Path) -> Result<SystemTime> {
    let mut time = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let of_entry =
            if entry.file_type()?.is_dir() { newest(&entry.path())? } else { entry.metadata()?.modified()? };
        time = time.max(of_entry);
    }
    Ok(time)
}
