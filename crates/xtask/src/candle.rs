//! The copies of candle-core and candle-kernels that the portable CUDA build uses, and the little that differs in them.
//!
//! Nothing of candle is kept in this project: the changes are made to the crates as cargo downloaded them, and fail
//! loudly where those are no longer as known here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::portable::write_if_new;

const ADAPT: &str = "this candle is not as the portable build knows it: adapt crates/xtask/src/candle.rs";

/// candle-core, but CUDA's libraries are looked for when first used instead of linked.
pub(crate) fn patch_core(from: &Path, to: &Path) -> Result<()> {
    copy_crate(from, to, |name, text| match name {
        "Cargo.toml" => trim_manifest(&replace_once(&text, "\"dynamic-linking\"", "\"dynamic-loading\"")?),
        _ => Ok(text),
    })
    .context(ADAPT)
}

/// candle-kernels, but its C functions over GGUF and expert matrices only say that they are not there.
pub(crate) fn patch_kernels(from: &Path, to: &Path) -> Result<()> {
    copy_crate(from, to, |name, text| match name {
        "Cargo.toml" => trim_manifest(&text),
        "build.rs" => without_static_kernels(&text),
        "src/ffi.rs" => stub_functions(&text),
        _ => Ok(text),
    })
    .context(ADAPT)
}

/// Copies what a crate is built from, each text through `change`. A file that is the same already keeps its time, so
/// that cargo sees nothing to do.
fn copy_crate(from: &Path, to: &Path, change: impl Fn(&str, String) -> Result<String>) -> Result<()> {
    let mut files = Vec::new();
    for name in ["Cargo.toml", "build.rs", "src"] {
        list_files(&from.join(name), &mut files)?;
    }
    for path in files {
        let name = path.strip_prefix(from)?;
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let changed = change(&name.to_string_lossy(), text).with_context(|| name.display().to_string())?;
        write_if_new(&to.join(name), changed.as_bytes())?;
    }
    Ok(())
}

fn list_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
    } else if path.is_dir() {
        for entry in fs::read_dir(path)? {
            list_files(&entry?.path(), files)?;
        }
    }
    Ok(())
}

/// The manifest without the targets that are not copied, and with the silence that a published crate's warnings get.
fn trim_manifest(text: &str) -> Result<String> {
    let mut manifest: toml::Table = text.parse().context("its Cargo.toml does not parse")?;
    for key in ["example", "bench", "test", "dev-dependencies", "lints"] {
        manifest.remove(key);
    }
    manifest.insert("lints".to_owned(), toml::toml! { rust.warnings = "allow" }.into());
    Ok(manifest.to_string())
}

/// The build script up to where it compiles and links the static library.
fn without_static_kernels(script: &str) -> Result<String> {
    let split = script.split_once("    let mut moe_sources = vec![");
    let (ptx_only, _) = split.context("the build script has no list moe_sources")?;
    Ok(format!("{ptx_only}    Ok(())\n}}\n"))
}

/// Gives each function declared in an `extern "C"` block a body that names it and aborts: a panic cannot leave a
/// function of that ABI.
fn stub_functions(declarations: &str) -> Result<String> {
    let mut out = String::new();
    let mut open: Option<&str> = None;
    let mut stubs = 0;
    for line in declarations.lines().filter(|line| line.trim() != "extern \"C\" {" && *line != "}") {
        if let Some(rest) = line.trim().strip_prefix("pub fn ") {
            open = rest.split('(').next();
        }
        let code = line.split("//").next().unwrap_or(line).trim_end();
        let ends = code.strip_suffix(';').filter(|signature| signature.contains(')'));
        let line = match (ends, open) {
            (Some(signature), Some(name)) => {
                open = None;
                stubs += 1;
                format!(
                    "{signature} {{\n        panic!(\"candle's {name} is not in Plimsoll's portable build\")\n    }}"
                )
            }
            _ => line.to_owned(),
        };
        out += &line.replace("pub fn ", "pub unsafe extern \"C\" fn ");
        out.push('\n');
    }
    let declared = declarations.matches("pub fn ").count();
    ensure!(stubs == declared && stubs > 0, "{declared} functions are declared, of which {stubs} were understood");
    Ok(out)
}

fn replace_once(text: &str, old: &str, new: &str) -> Result<String> {
    let count = text.matches(old).count();
    ensure!(count == 1, "{old} stands {count} times where it should stand once");
    Ok(text.replace(old, new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_become_functions_that_name_themselves() {
        let declarations = "use core::ffi::c_void;\n#[allow(dead_code)]\nextern \"C\" {\n    // first\n    pub fn one(\n\
                            \x20       x: *const c_void, // a (pointer);\n        n: i32,\n    );\n    pub fn two(n: i32) -> i32;\n}\n";
        let stubs = stub_functions(declarations).unwrap();
        assert!(stubs.contains("pub unsafe extern \"C\" fn one(\n"), "{stubs}");
        assert!(stubs.contains("    ) {\n        panic!(\"candle's one is not"), "{stubs}");
        assert!(stubs.contains("fn two(n: i32) -> i32 {\n        panic!(\"candle's two is not"), "{stubs}");
        assert!(!stubs.contains("extern \"C\" {"), "{stubs}");
    }

    #[test]
    fn a_candle_of_another_shape_is_refused() {
        assert!(stub_functions("extern \"C\" {\n    pub fn one(n: i32)\n    ;\n}\n").is_err());
        assert!(stub_functions("").is_err());
        assert!(without_static_kernels("fn main() {}\n").is_err());
        assert!(replace_once("features = [\"std\"]", "\"dynamic-linking\"", "\"dynamic-loading\"").is_err());
    }

    #[test]
    fn a_manifest_names_only_what_is_copied() {
        let manifest = "[package]\nname = \"k\"\n[[example]]\nname = \"e\"\n[dev-dependencies]\nanyhow = \"1\"\n";
        let trimmed: toml::Table = trim_manifest(manifest).unwrap().parse().unwrap();
        assert_eq!(trimmed.keys().collect::<Vec<_>>(), ["lints", "package"]);
    }
}
