//! The tiny checkpoints with some of their bytes changed, cut, moved or made up: opening and loading one gives a model or an
//! error, and never a panic or memory that only a header claims; and a survey tells of every error that does not lie in the
//! matrices' own numbers, in the same words. Which bytes is decided by a seed, which is printed with a failure;
//! `PLIMSOLL_DAMAGE_SEED` runs that seed alone.

mod blocks;
mod harm;
#[path = "../scratch/mod.rs"]
mod scratch;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use plimsoll_models::{dummy_bytes, load, load_dummy, survey};
use plimsoll_nn::{Checkpoint, CheckpointError};
use plimsoll_ops::linear::Activations;
use plimsoll_ops::quant::GgmlType;
use serde_json::Value;

use self::harm::{Random, damage};
use self::scratch::Scratch;

/// Damages of each file.
const SEEDS: u64 = 300;
/// What an opening takes beside the checkpoint: threads, patterns.
const SLACK: usize = 4 << 20;

/// Counts what is allocated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// Held by the one test that allocates just now.
static TURN: Mutex<()> = Mutex::new(());

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

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

const SUBJECTS: [Subject; 25] = [
    of_folder("llama", WEIGHTS),
    of_folder("llama", CONFIG),
    of_folder("llama3", "model.safetensors.index.json"),
    of_folder("llama3", "model-00002-of-00002.safetensors"),
    of_folder("llama-gptq-act-order", WEIGHTS),
    of_folder("llama-gptq-act-order", CONFIG),
    of_folder("llama-ct-int4-zeros", WEIGHTS),
    of_folder("llama-ct-int4-zeros", CONFIG),
    of_folder("llama-ct-int8", WEIGHTS),
    of_folder("llama-fp8-block", WEIGHTS),
    of_folder("llama-fp8-block", CONFIG),
    of_folder("llama-awq", WEIGHTS),
    of_folder("qwen3_moe-awq", WEIGHTS),
    of_folder("qwen3_moe-awq", CONFIG),
    of_folder("llama4", WEIGHTS),
    of_folder("llama4", CONFIG),
    of_folder("llama4-fp8-channel", WEIGHTS),
    of_folder("gpt-oss-mxfp4", WEIGHTS),
    of_folder("gpt-oss-mxfp4", CONFIG),
    of_folder("gpt-oss-fp8-block", WEIGHTS),
    of_folder("gpt-oss-gptq-listed", WEIGHTS),
    of_folder("gemma3", CONFIG),
    Subject { folder: "llama", file: "q4_0.gguf", opened: "q4_0.gguf" },
    Subject { folder: "gemma3", file: "q8_0.gguf", opened: "q8_0.gguf" },
    // Made here, of every type of blocks.
    Subject { folder: "", file: "blocks.gguf", opened: "blocks.gguf" },
];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// A copy of a golden folder, or a folder of what is made here.
fn copy_of(folder: &str, test: &str) -> Scratch {
    let copy = Scratch::new(test);
    if folder.is_empty() {
        fs::write(copy.join("blocks.gguf"), blocks::file().0).unwrap();
        return copy;
    }
    for entry in fs::read_dir(golden().join(folder)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() && entry.file_name() != "golden.safetensors" {
            fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
        }
    }
    copy
}

/// Runs `work`, and refuses a panic, or that it takes more than `most` bytes.
fn bounded<T>(case: &str, most: usize, work: impl FnOnce() -> T) -> T {
    let before = ALLOCATED.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    let taken = PEAK.load(Ordering::Relaxed) - before;
    assert!(taken <= most, "{case}: {taken} bytes were allocated, not {most}");
    outcome.unwrap_or_else(|_| panic!("{case}: panicked"))
}

/// Opens and loads; a survey must foretell what comes.
fn survey_and_load(path: &Path) -> Result<(), CheckpointError> {
    let checkpoint = Checkpoint::open(path)?;
    let problems: Vec<String> = survey(&checkpoint).iter().map(ToString::to_string).collect();
    let loaded = load(&checkpoint, Activations::Int8, |_, _| {}).map(drop);
    match &loaded {
        Ok(()) => assert!(problems.is_empty(), "it loads, but a survey says {problems:?}"),
        Err(CheckpointError::Row { .. }) => {}
        Err(error) => {
            assert!(problems.contains(&error.to_string()), "a survey says {problems:?}, not {error}");
        }
    }
    loaded
}

/// What a config claims is counted without being made; what it claims little of is made.
fn make_up(case: &str, text: &[u8]) {
    const MADE: u64 = 2 << 20;
    let Ok(config) = serde_json::from_slice::<Value>(text) else { return };
    let counted = bounded(case, SLACK, || dummy_bytes(&config));
    if let Some(bytes) = counted.ok().filter(|&bytes| bytes < MADE) {
        let most = 8 * bytes as usize + SLACK;
        let made = bounded(case, most, || load_dummy(&config, 0, Activations::Int8, |_| {}).map(drop));
        made.unwrap_or_else(|error| panic!("{case}: counted, but {error}"));
    }
}

#[test]
fn no_damage_makes_it_panic_or_claim_memory() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let alone = std::env::var("PLIMSOLL_DAMAGE_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let (mut loaded, mut refused, mut no_numbers) = (0, 0, 0);
    for Subject { folder, file, opened } in SUBJECTS {
        let copy = copy_of(folder, "damaged");
        let path = if opened.is_empty() { copy.to_path_buf() } else { copy.join(opened) };
        let whole = fs::read(copy.join(file)).unwrap();
        let size: u64 = fs::read_dir(&*copy).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        for seed in alone.map_or(0..SEEDS, |seed: u64| seed..seed + 1) {
            let case = format!("{folder}/{file}, PLIMSOLL_DAMAGE_SEED={seed}");
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut Random(seed));
            fs::write(copy.join(file), &bytes).unwrap();
            if file == CONFIG {
                make_up(&case, &bytes);
            }
            drop(bytes);
            match bounded(&case, 8 * size as usize + SLACK, || survey_and_load(&path)) {
                Ok(()) => loaded += 1,
                Err(error) => {
                    assert!(error.to_string().len() < 2000, "{case}: {error}");
                    refused += 1;
                    no_numbers += usize::from(matches!(error, CheckpointError::Row { .. }));
                }
            }
        }
    }
    println!("{loaded} loaded, {refused} were refused, {no_numbers} of them for numbers that are none");
    assert!(alone.is_some() || loaded > 100 && refused > 1000 && no_numbers > 10, "{loaded}, {refused}, {no_numbers}");
}

/// In each type of blocks, each half that the block's scales are multiplied with.
#[test]
fn scales_within_blocks_that_are_not_numbers_are_refused_by_tensor_and_row() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = copy_of("", "damaged-scales");
    let path = folder.join("blocks.gguf");
    let (whole, begins) = blocks::file();
    survey_and_load(&path).unwrap();
    for ((name, ty, _), begin) in blocks::MATRICES.into_iter().zip(begins) {
        let row_bytes = ty.row_bytes(256).unwrap();
        let halves: &[usize] = match ty {
            GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4K | GgmlType::Q5K => &[0, 2],
            GgmlType::Q2K => &[80, 82],
            GgmlType::Q3K => &[108],
            GgmlType::Q6K => &[208],
            _ => &[0],
        };
        for &half in halves {
            for value in [[0x00, 0x7c], [0x00, 0xfc], [0x01, 0x7e], [0xff, 0xff]] {
                let mut bytes = whole.clone();
                let last_block = (2 * row_bytes) - ty.block_bytes();
                let value = if ty == GgmlType::MXFP4 { [255, value[1]] } else { value };
                bytes[begin + last_block + half..][..2].copy_from_slice(&value);
                fs::write(&path, bytes).unwrap();
                let refused = survey_and_load(&path).unwrap_err().to_string();
                assert!(refused.contains(&format!("tensor {name}: row ")), "{ty:?}: {refused}");
                assert!(refused.contains("has a scale that is not a number"), "{ty:?}: {refused}");
                // Of queries and keys the file's rows are in another order.
                assert!(
                    refused.contains(": row 1 ") || name.contains("attn_q") || name.contains("attn_k"),
                    "{refused}"
                );
            }
        }
    }
}
