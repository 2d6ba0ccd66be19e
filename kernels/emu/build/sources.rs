//! Which C++ the emulator is made of: its runtime, and a generated translation unit for each `.cu`. Shared by this
//! crate's build script and the chore that builds the stand-in driver.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// A `.cu` file and its entry points.
pub(crate) struct Kernels {
    pub(crate) source: PathBuf,
    pub(crate) entries: Vec<Entry>,
}

pub(crate) struct Entry {
    pub(crate) name: String,
    /// What stands in `__launch_bounds__(..)`; empty without.
    pub(crate) bounds: String,
}

/// Kernels need every access reported; so do they need the aliasing that nvcc allows, and no fused arithmetic that one
/// machine has and another lacks. Messages need line numbers, which older addr2lines misread in DWARF 5.
pub(crate) const KERNEL_FLAGS: &[&str] = &[
    "-fsanitize=thread",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-g1",
    "-gdwarf-4",
    "-w",
];

/// How each compiler is told to report volatile accesses apart.
pub(crate) fn volatile_flags(clang: bool) -> &'static [&'static str] {
    if clang {
        &["-mllvm", "-tsan-distinguish-volatile=1", "-mllvm", "-tsan-instrument-func-entry-exit=0"]
    } else {
        &["--param", "tsan-distinguish-volatile=1", "--param", "tsan-instrument-func-entry-exit=0"]
    }
}

/// All files of a folder with this extension, sorted.
pub(crate) fn files(folder: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn kernels_in(folder: &Path) -> io::Result<Vec<Kernels>> {
    let read = |source: PathBuf| {
        let entries = entry_points(&fs::read_to_string(&source)?);
        Ok(Kernels { source, entries })
    };
    files(folder, "cu")?.into_iter().map(read).collect()
}

/// The kernels that a source defines, each on one line: `extern "C" __global__ void [__launch_bounds__(..)] name(`.
fn entry_points(code: &str) -> Vec<Entry> {
    let declared = code.lines().filter_map(|line| line.trim().strip_prefix("extern \"C\" __global__ void "));
    declared.filter_map(entry_point).collect()
}

fn entry_point(rest: &str) -> Option<Entry> {
    let (bounds, rest) = match rest.trim_start().strip_prefix("__launch_bounds__(") {
        Some(inner) => inner.split_at(closing_parenthesis(inner)?),
        None => ("", rest),
    };
    let name = rest.trim_start_matches(')').split('(').next()?.trim();
    Some(Entry { name: name.to_owned(), bounds: bounds.to_owned() })
}

fn closing_parenthesis(text: &str) -> Option<usize> {
    let mut depth = 1;
    text.char_indices().find_map(|(at, letter)| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        (depth == 0).then_some(at)
    })
}

/// The table's name in the translation unit of a source.
fn table_name(source: &Path) -> String {
    let stem = source.file_stem().unwrap_or_default().to_string_lossy().replace(['-', '.'], "_");
    format!("plimsoll_emu_{stem}")
}

/// C++ that includes a source and lists its kernels. The source stands in a namespace of its own, as its symbols do in a
/// fat binary of its own.
pub(crate) fn translation_unit(kernels: &Kernels) -> String {
    let table = table_name(&kernels.source);
    let mut text = String::from("#include \"device.cuh\"\n#include \"registry.h\"\n");
    text += &format!("namespace {table}_source {{\n#include \"{}\"\n", kernels.source.display());
    text += "static const emu::Entry all[] = {\n";
    for Entry { name, bounds } in &kernels.entries {
        let bounds = if bounds.is_empty() { String::new() } else { format!(", {bounds}") };
        text += &format!("    emu::entry<{name}>(\"{name}\"{bounds}),\n");
    }
    text += "    {nullptr, nullptr, 0, nullptr, 0},\n};\n}\n";
    let count = kernels.entries.len();
    text + &format!("extern const emu::Entries {table};\nconst emu::Entries {table}{{{table}_source::all, {count}}};\n")
}

/// C++ that lists the tables of all sources.
pub(crate) fn table(all: &[Kernels]) -> String {
    let names: Vec<String> = all.iter().map(|kernels| table_name(&kernels.source)).collect();
    let mut text = String::from("#include \"registry.h\"\n");
    for name in &names {
        text += &format!("extern const emu::Entries {name};\n");
    }
    let listed: String = names.iter().map(|name| format!("&{name}, ")).collect();
    text +=
        "extern const emu::Entries* const plimsoll_emu_sources[];\nextern const size_t plimsoll_emu_source_count;\n";
    text += &format!("const emu::Entries* const plimsoll_emu_sources[] = {{{listed}nullptr}};\n");
    text + &format!("const size_t plimsoll_emu_source_count = {};\n", names.len())
}

/// Folders with `cuda_bf16.h` and its like: NVIDIA's where a toolkit is found, else the stand-ins in `emu/include`.
pub(crate) fn header_folders(kernels_folder: &Path) -> Vec<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let assembled = kernels_folder.join("../target/cuda-toolkit");
    for home in homes.chain([assembled]) {
        let include = home.join("include");
        let complete = include.join("nv/target").exists() || include.join("cccl/nv/target").exists();
        if include.join("cuda_fp8.h").exists() && complete {
            return vec![include.clone(), include.join("cccl")];
        }
    }
    vec![kernels_folder.join("emu/include")]
}
