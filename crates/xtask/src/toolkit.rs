//! Finds a CUDA toolkit, or assembles one from NVIDIA's PyPI wheels where the machine has none.
//!
//! A toolkit of the machine's own comes first: `CUDA_HOME`, `CUDA_PATH`, `nvcc` on `PATH`, `/usr/local/cuda`. Without
//! one, five pinned wheels (104 MB) become `target/cuda-toolkit`: nvcc and the headers, enough to compile device code
//! and to build crates that load CUDA at run time. It must never need a GPU, nor install anything outside `target/`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The wheels that make one toolkit. Unpinned, nvcc would pull a newer nvvm and crt than itself.
const PINS: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// What nvcc of these wheels says of itself.
const ASSEMBLED_VERSION: &str = "V13.0.88";

/// The oldest release the kernels compile with: `--compress-mode` came with it.
const OLDEST: (u32, u32) = (12, 8);

/// Names the pins that an assembled toolkit was made of; written last, so its presence says that all is there.
const STAMP: &str = "plimsoll-pins";

/// The architecture that candle's own PTX is compiled for. PTX is compiled on for what the machine has, so the oldest
/// supported one runs on all; `sm_90a` code would run on 9.0 alone.
const CANDLE_COMPUTE_CAP: &str = "80";

/// The CUDA release whose library names (`libcublas.so.13`) a binary looks for.
pub(crate) const CUDARC_CUDA_VERSION: &str = "13000";

/// A folder with `bin/nvcc`, `include`, `nvvm` and `lib64`.
pub(crate) struct Toolkit {
    pub(crate) home: PathBuf,
}

impl Toolkit {
    pub(crate) fn nvcc(&self) -> PathBuf {
        self.home.join("bin/nvcc")
    }

    /// The environment a cargo build with CUDA needs. What the caller's own environment sets stays.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let path = std::env::var("PATH").unwrap_or_default();
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let own = |name: &'static str, default: String| (name, std::env::var(name).unwrap_or(default));
        vec![
            ("CUDA_HOME", self.home.display().to_string()),
            ("PATH", format!("{}:{path}", self.home.join("bin").display())),
            own("CUDA_COMPUTE_CAP", CANDLE_COMPUTE_CAP.to_owned()),
            own("CUDARC_CUDA_VERSION", CUDARC_CUDA_VERSION.to_owned()),
            own("CUDAFORGE_THREADS", threads.to_string()),
        ]
    }
}

/// `cargo xtask cuda-toolkit [--env]`: prints the folder, or the `export` lines for a shell.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let env = match arguments {
        [] => false,
        [flag] if flag == "--env" => true,
        _ => bail!("cuda-toolkit takes --env or nothing"),
    };
    let toolkit = ensure(root)?;
    if !env {
        println!("{}", toolkit.home.display());
        return Ok(());
    }
    for (name, value) in toolkit.environment() {
        match name {
            "PATH" => println!("export PATH='{}':\"$PATH\"", toolkit.home.join("bin").display()),
            _ => println!("export {name}='{value}'"),
        }
    }
    Ok(())
}

/// The toolkit to build with: the machine's own, or the one in `target/`, assembled at the first call.
///
/// # Errors
/// Where none is there and none can be assembled: no python3 with pip, no network, no C++ compiler.
pub(crate) fn ensure(root: &Path) -> Result<Toolkit> {
    if let Some(home) = machines_own() {
        return Ok(Toolkit { home });
    }
    let target = root.join("target");
    let home = target.join("cuda-toolkit");
    if !is_current(&home) {
        assemble(&target, &home)?;
    }
    Ok(Toolkit { home })
}

fn machines_own() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let on_path = || {
        let folders = std::env::var_os("PATH")?;
        let nvcc = std::env::split_paths(&folders).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file())?;
        Some(nvcc.canonicalize().ok()?.parent()?.parent()?.to_owned())
    };
    let candidates = [
        ("CUDA_HOME", variable("CUDA_HOME")),
        ("CUDA_PATH", variable("CUDA_PATH")),
        ("nvcc on PATH", on_path()),
        ("/usr/local/cuda", Some(PathBuf::from("/usr/local/cuda")).filter(|home| home.exists())),
    ];
    for (origin, home) in candidates {
        let Some(home) = home else { continue };
        match check(&home) {
            Ok(()) => return Some(home),
            Err(why) => eprintln!("note: {origin} gives {}, which is of no use: {why:#}", home.display()),
        }
    }
    None
}

fn check(home: &Path) -> Result<()> {
    let text = nvcc_version(home)?;
    let release = parse_release(&text).context("its nvcc --version names no release")?;
    if release < OLDEST {
        bail!("release {}.{} is older than {}.{}", release.0, release.1, OLDEST.0, OLDEST.1);
    }
    if !home.join("include/cuda_runtime.h").exists() {
        bail!("it has no include/cuda_runtime.h");
    }
    Ok(())
}

pub(crate) fn nvcc_version(home: &Path) -> Result<String> {
    let nvcc = home.join("bin/nvcc");
    let output = Command::new(&nvcc).arg("--version").output();
    let output = output.with_context(|| format!("cannot run {}", nvcc.display()))?;
    if !output.status.success() {
        bail!("{} --version ended with {}", nvcc.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `(13, 0)` of "Cuda compilation tools, release 13.0, V13.0.88".
fn parse_release(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.split_once('.')?;
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

fn stamp() -> String {
    PINS.join("\n") + "\n"
}

fn is_current(home: &Path) -> bool {
    fs::read_to_string(home.join(STAMP)).is_ok_and(|text| text == stamp())
}

/// Builds beside the final place and renames, so that a half-made toolkit is never seen under its name.
fn assemble(target: &Path, home: &Path) -> Result<()> {
    require_tools()?;
    let work = target.join(format!("cuda-toolkit.{}", std::process::id()));
    let done = assemble_in(&work).and_then(|made| publish(&made, home));
    let _ = fs::remove_dir_all(&work);
    done
}

fn require_tools() -> Result<()> {
    let runs = |program: &str, arguments: &[&str]| {
        Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
    };
    if !runs("python3", &["--version"]) {
        bail!("no CUDA toolkit, and no python3 to fetch one with: install python3 with pip, or set CUDA_HOME");
    }
    if !runs("python3", &["-m", "pip", "--version"]) {
        bail!("no CUDA toolkit, and python3 has no pip to fetch one with: install python3-pip, or set CUDA_HOME");
    }
    if !runs("g++", &["--version"]) {
        bail!("nvcc needs a C++ compiler beside it: install g++");
    }
    Ok(())
}

fn assemble_in(work: &Path) -> Result<PathBuf> {
    let wheels = work.join("wheels");
    let unpacked = work.join("unpacked");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    eprintln!("fetching nvcc 13.0 from PyPI (104 MB) ...");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary=:all:", "--dest"]).arg(&wheels).args(PINS);
    quietly(&mut pip).context("cannot fetch the CUDA wheels from PyPI; is there a network? CUDA_HOME avoids it")?;
    let mut count = 0;
    for wheel in fs::read_dir(&wheels)? {
        let mut unzip = Command::new("python3");
        quietly(unzip.args(["-m", "zipfile", "-e"]).arg(wheel?.path()).arg(&unpacked)).context("cannot unpack")?;
        count += 1;
    }
    if count != PINS.len() {
        bail!("pip brought {count} wheels, not {}", PINS.len());
    }
    let home = unpacked.join("nvidia/cu13");
    lay_out(&home)?;
    verify(&home, work)?;
    fs::write(home.join(STAMP), stamp())?;
    Ok(home)
}

/// What the wheels' folder lacks of a toolkit's: execute bits, `lib64`, and library names without a version.
fn lay_out(home: &Path) -> Result<()> {
    for folder in ["bin", "nvvm/bin"] {
        let folder = home.join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("the wheels brought no {}", folder.display()))? {
            let path = entry?.path();
            if path.is_file() {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
            }
        }
    }
    symlink("lib", home.join("lib64"))?;
    symlink("libcudart.so.13", home.join("lib/libcudart.so"))?;
    symlink("libnvvm.so.4", home.join("lib/libnvvm.so"))?;
    Ok(())
}

/// nvcc says the pinned version, and it and the machine's C++ compiler make a cubin of a kernel.
fn verify(home: &Path, work: &Path) -> Result<()> {
    let text = nvcc_version(home)?;
    if !text.contains(ASSEMBLED_VERSION) {
        bail!("the fetched nvcc is not {ASSEMBLED_VERSION}:\n{text}");
    }
    let source = work.join("probe.cu");
    fs::write(&source, "#include <cuda_bf16.h>\n__global__ void probe(__nv_bfloat16* x) { x[0] = 1.0f; }\n")?;
    let mut nvcc = Command::new(home.join("bin/nvcc"));
    nvcc.args(["-std=c++17", "-cubin", "-arch=sm_90a", "-o"]).arg(work.join("probe.cubin")).arg(source);
    quietly(&mut nvcc).context("the fetched nvcc does not compile; g++ of release 7 to 15 is what it works with")
}

/// Puts the finished folder in its place. Whoever else finished one first with the same pins has done the job.
fn publish(made: &Path, home: &Path) -> Result<()> {
    if is_current(home) {
        return Ok(());
    }
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| format!("cannot remove the outdated {}", home.display()))?;
    }
    match fs::rename(made, home) {
        Err(_) if is_current(home) => Ok(()),
        renamed => renamed.with_context(|| format!("cannot make {}", home.display())),
    }
}

/// Runs to the end; what it wrote is shown only where it fails.
fn quietly(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{program} ended with {}:\n{}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_from_what_nvcc_says() {
        let said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\n";
        assert_eq!(parse_release(said), Some((12, 8)));
        assert_eq!(parse_release("nvcc: command not found"), None);
    }

    #[test]
    fn a_folder_without_nvcc_is_no_toolkit() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let error = format!("{:#}", check(folder).unwrap_err());
        assert!(error.contains("cannot run") && error.contains("bin/nvcc"), "{error}");
    }

    #[test]
    fn a_stamp_of_other_pins_is_outdated() {
        let home = std::env::temp_dir().join(format!("plimsoll-stamp-{}", std::process::id()));
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join(STAMP), stamp()).unwrap();
        assert!(is_current(&home));
        fs::write(home.join(STAMP), stamp().replace("13.0.88", "13.0.90")).unwrap();
        assert!(!is_current(&home));
        fs::remove_dir_all(&home).unwrap();
        assert!(!is_current(&home));
    }
}
