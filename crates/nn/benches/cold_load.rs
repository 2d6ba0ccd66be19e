//! How fast a checkpoint loads that is not in the page cache, beside how fast its disk can be read: run by hand, in a
//! folder on the disk that is meant.
//!
//! ```sh
//! cargo bench -p plimsoll-nn --bench cold_load -- [MiB] [FOLDER]
//! ```
//!
//! Each round does all of it once, in turn, so that what else the disk and the machine do meets each alike: the disk read
//! past the page cache; the file read through it; a load, cold; and a load from the page cache, which is what packing alone
//! takes. Medians and extremes of the rounds are printed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use plimsoll_nn::{Checkpoint, Weights};
use plimsoll_ops::linear::Activations;
use rustix::fs::{Advice, OFlags, fadvise, fsync};

const ROUNDS: usize = 9;
/// Of a matrix of bf16: 16 MiB.
const ROWS: usize = 4096;
const COLS: usize = 2048;
const MATRIX_BYTES: usize = 2 * ROWS * COLS;
const MIB: usize = 1 << 20;

type Measure<'a> = (&'a str, Box<dyn Fn() -> io::Result<f64> + 'a>);

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let mib: usize = arguments.next().map_or(1024, |mib| mib.parse().expect("MiB"));
    let parent = arguments.next().map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).into(), PathBuf::from);
    let folder = parent.join(format!("cold-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let matrices = mib * MIB / MATRIX_BYTES;
    let file = folder.join("model.safetensors");
    std::fs::write(folder.join("config.json"), "{}")?;
    write_checkpoint(&file, matrices)?;

    let bytes = (matrices * MATRIX_BYTES) as f64;
    let timed = |work: &dyn Fn() -> io::Result<()>| -> io::Result<f64> {
        let start = Instant::now();
        work()?;
        Ok(bytes / start.elapsed().as_secs_f64() / 1e6)
    };
    let cold = |work: &dyn Fn() -> io::Result<()>| {
        drop_from_page_cache(&file)?;
        timed(work)
    };
    let measures: [Measure<'_>; 4] = [
        ("disk, past the page cache", Box::new(|| cold(&|| read_whole(&file, OFlags::DIRECT)))),
        ("file, through the page cache", Box::new(|| cold(&|| read_whole(&file, OFlags::empty())))),
        ("cold load", Box::new(|| cold(&|| load(&folder, matrices)))),
        ("load from the page cache", Box::new(|| timed(&|| load(&folder, matrices)))),
    ];
    let mut rates = vec![Vec::new(); measures.len()];
    for _ in 0..ROUNDS {
        for ((_, measure), rates) in measures.iter().zip(&mut rates) {
            rates.push(measure()?);
        }
    }
    for ((name, _), rates) in measures.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let (least, median, most) = (rates[0], rates[ROUNDS / 2], rates[ROUNDS - 1]);
        println!("{name:<30} {median:>6.0} MB/s ({least:.0} to {most:.0})");
    }
    println!("cold load / disk: {:.2} (medians of {ROUNDS})", rates[2][ROUNDS / 2] / rates[0][ROUNDS / 2]);
    std::fs::remove_dir_all(&folder)
}

fn name(index: usize) -> String {
    format!("layers.{index}")
}

/// Matrices of noise, in the order in which they will be asked for.
fn write_checkpoint(path: &Path, matrices: usize) -> io::Result<()> {
    let entry = |index: usize| {
        let (begin, end) = (index * MATRIX_BYTES, (index + 1) * MATRIX_BYTES);
        let name = name(index);
        format!(r#""{name}.weight":{{"dtype":"BF16","shape":[{ROWS},{COLS}],"data_offsets":[{begin},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..matrices).map(entry).collect::<Vec<_>>().join(","));
    let mut out = BufWriter::with_capacity(MIB, File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    let mut state = 1u64;
    for _ in 0..matrices * MATRIX_BYTES / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Exponents below those of infinities and NaNs.
        out.write_all(&(state & 0xbfff_bfff_bfff_bfff).to_le_bytes())?;
    }
    fsync(out.into_inner()?)?;
    Ok(())
}

fn drop_from_page_cache(path: &Path) -> io::Result<()> {
    Ok(fadvise(File::open(path)?, 0, None, Advice::DontNeed)?)
}

/// Front to back.
fn read_whole(path: &Path, flags: OFlags) -> io::Result<()> {
    const PIECE: usize = 8 * MIB;
    let mut file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    let mut memory = vec![0u8; PIECE + 4096];
    let aligned = memory.as_ptr().align_offset(4096);
    while file.read(&mut memory[aligned..aligned + PIECE])? > 0 {}
    Ok(())
}

fn load(folder: &Path, matrices: usize) -> io::Result<()> {
    let checkpoint = Checkpoint::open(folder).map_err(io::Error::other)?;
    let weights = Weights::new(&checkpoint, Activations::Int8, |_, _| ()).map_err(io::Error::other)?;
    for index in 0..matrices {
        weights.linear(&[(&name(index), ROWS)], COLS).map_err(io::Error::other)?;
    }
    Ok(())
}
