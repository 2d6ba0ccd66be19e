//! The tiny checkpoints with some of their bytes changed, cut, moved or made up: opening and loading one gives a model or an
//! error, and never a panic or memory that only a header claims. Which bytes is decided by a seed, which is printed
//! with a failure; `PLIMSOLL_DAMAGE_SEED` runs that seed alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use plimsoll_models::{load, survey};
use plimsoll_nn::Checkpoint;
use plimsoll_ops::linear::Activations;

/// Damages of each file.
const SEEDS: u64 = 500;

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it hands everything to the system's allocator, and counts beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// SplitMix64 (doi:10.1145/2660193.2660195).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// A file of a checkpoint that is damaged, and what is opened then.
struct Subject {
    /// Under tests/golden; a copy of it is damaged.
    folder: &'static str,
    file: &'static str,
    /// "" is the folder.
    opened: &'static str,
}

const fn of_folder(folder: &'static str, file: &'static str) -> Subject {
    Subject { folder, file, opened: "" }
}

const SUBJECTS: [Subject; 8] = [
    of_folder("llama", "model.safetensors"),
    of_folder("llama", "config.json"),
    of_folder("llama3", "model.safetensors.index.json"),
    of_folder("llama3", "model-00002-of-00002.safetensors"),
    of_folder("gpt-oss-mxfp4", "model.safetensors"),
    of_folder("gpt-oss-mxfp4", "config.json"),
    Subject { folder: "llama", file: "q4_0.gguf", opened: "q4_0.gguf" },
    Subject { folder: "gemma3", file: "q8_0.gguf", opened: "q8_0.gguf" },
];

/// Changes a few things; most of them near the front, where the claims are.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    const INTERESTING: [u64; 8] = [0, 1, 7, u64::MAX, 1 << 31, 1 << 40, 1 << 62, 1 << 63];
    for _ in 0..1 + random.below(3) {
        let front = [64, 4096, bytes.len()][random.below(3)].min(bytes.len());
        let at = random.below(front);
        let rest = bytes.len() - at;
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at] = b"0123456789[]{},:\"-e"[random.below(19)],
            3 => bytes.truncate(at.max(1)),
            4 => {
                let value = INTERESTING[random.below(8)].to_le_bytes();
                let len = rest.min(8);
                bytes[at..at + len].copy_from_slice(&value[..len]);
            }
            5 => {
                let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(at..at + digits, INTERESTING[random.below(8)].to_string().into_bytes());
            }
            6 => {
                let from = random.below(bytes.len());
                let len = random.below(40).min(rest).min(bytes.len() - from);
                bytes.copy_within(from..from + len, at);
            }
            _ => drop(bytes.drain(at..at + random.below(40).min(rest - 1))),
        }
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn copy_of(folder: &str) -> PathBuf {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("damaged");
    let _ = fs::remove_dir_all(&copy); // of the file before
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(golden().join(folder)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

#[test]
fn no_damage_makes_it_panic_or_claim_memory() {
    let alone = std::env::var("PLIMSOLL_DAMAGE_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let (mut loaded, mut refused) = (0, 0);
    for Subject { folder, file, opened } in SUBJECTS {
        let copy = copy_of(folder);
        let path = if opened.is_empty() { copy.clone() } else { copy.join(opened) };
        let whole = fs::read(copy.join(file)).unwrap();
        let size: u64 = fs::read_dir(&copy).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        for seed in alone.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut Random(seed));
            fs::write(copy.join(file), &bytes).unwrap();
            drop(bytes);
            let before = ALLOCATED.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let checkpoint = Checkpoint::open(&path)?;
                let problems = survey(&checkpoint);
                let loaded = load(&checkpoint, Activations::Int8, |_, _| {}).map(drop);
                assert!(loaded.is_err() || problems.is_empty(), "it loads, but a survey says {problems:?}");
                loaded
            }));
            let taken = PEAK.load(Ordering::Relaxed) - before;
            let case = format!("{folder}/{file}, PLIMSOLL_DAMAGE_SEED={seed}");
            assert!(taken < 8 * size as usize + (4 << 20), "{case}: {taken} bytes were allocated");
            match outcome {
                Err(_) => panic!("{case}: panicked"),
                Ok(Ok(())) => loaded += 1,
                Ok(Err(error)) => {
                    assert!(error.to_string().len() < 2000, "{case}: {error}");
                    refused += 1;
                }
            }
        }
    }
    println!("{loaded} loaded, {refused} were refused");
    assert!(alone.is_some() || loaded > 10 && refused > 100, "{loaded} loaded, {refused} were refused");
}
