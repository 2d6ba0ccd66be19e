//! Logits of tiny random checkpoints against transformers', and the ways of computing them against each other.

use candle_core::Device;
use plimsoll_models::{find, load};
use plimsoll_nn::{Checkpoint, ForwardBatch, KvCache};
use plimsoll_ops::attention::PagedBatch;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use serde_json::Value;

use crate::driver::{BLOCK_SIZE, Case, Driver, golden_dir, relative_error};

/// Bits, so that equal means equal.
fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

fn driver(case: &Case) -> Driver {
    Driver::open(&case.path, Activations::F32, 256)
}

#[test]
fn logits_match_transformers() {
    let mut wrong = Vec::new();
    for case in Case::all() {
        let name = &case.name;
        let mut driver = driver(&case);
        let mut worst: f32 = 0.0;
        for prompt in case.prompts() {
            let logits = driver.whole(&prompt.ids);
            for (position, expected) in &prompt.rows {
                worst = worst.max(relative_error(&logits[*position], expected));
            }
        }
        println!("{name}: largest relative error {worst:.2e}");
        if worst >= 1e-4 {
            wrong.push(format!("{name}: {worst:e}"));
        }
    }
    assert!(wrong.is_empty(), "largest relative error: {}", wrong.join(", "));
}

/// The root mean square errors of a case's recorded rows, of the logits' root mean square: at half of the positions it is the
/// first or less, nowhere more than the second.
fn errors(case: &Case, driver: &mut Driver) -> [f64; 2] {
    let mut errors = Vec::new();
    for prompt in case.prompts() {
        let logits = driver.whole(&prompt.ids);
        errors.extend(prompt.rows.iter().map(|(at, expected)| root_mean_square_error(&logits[*at], expected)));
    }
    errors.sort_by(f64::total_cmp);
    [errors[errors.len() / 2], errors[errors.len() - 1]]
}

/// Int8 activations are an approximation; on random weights, the worst case for it, the logits of half the
/// positions stay close. Not of all: a router whose two best scores are near each other may choose the other.
#[test]
fn int8_activations_stay_close() {
    for case in Case::all() {
        let name = &case.name;
        let [most, worst] = errors(&case, &mut Driver::open(&case.path, Activations::Int8, 256));
        println!("{name}: {most:.4} at half of the positions, {worst:.4} at most");
        assert!(most < 0.05, "{name}: {most} of the logits' root mean square at half of the positions");
        assert!(worst < 0.7, "{name}: {worst} of the logits' root mean square");
    }
}

/// As above, of keys and values of 16 and of 8 bits; not of mixtures, where a token that is sent to another expert may come out
/// as anything, and changes those after it.
#[test]
fn smaller_caches_stay_close() {
    for case in Case::all() {
        let name = &case.name;
        for (kv, most_allowed) in [(KvDtype::F16, 0.01), (KvDtype::BF16, 0.01), (KvDtype::Fp8, 0.2)] {
            let mut driver = Driver::open_with(&case.path, Activations::F32, kv, |_| 256);
            if driver.info.experts.is_some() {
                continue;
            }
            let [most, worst] = errors(&case, &mut driver);
            println!("{name} with {kv:?}: {most:.4} at half of the positions, {worst:.4} at most");
            assert!(most > 0.0 && most < most_allowed, "{name} with {kv:?}: {most} at half of the positions");
            assert!(worst < 0.4, "{name} with {kv:?}: {worst}");
        }
    }
}

/// Of the expected values' root mean square.
fn root_mean_square_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = found.iter().zip(expected).map(|(found, expected)| square(found - expected)).sum();
    (error / expected.iter().map(|&x| square(x)).sum::<f64>()).sqrt()
}

/// The largest number under this key, however deep.
fn largest(config: &Value, key: &str) -> Option<u64> {
    let children: Vec<&Value> = match config {
        Value::Object(fields) => fields.values().collect(),
        Value::Array(items) => items.iter().collect(),
        _ => Vec::new(),
    };
    children.into_iter().filter_map(|child| largest(child, key)).chain(config[key].as_u64()).max()
}

/// What is different beyond a window, a chunk, or the context that YaRN extends, shows in what is recorded.
#[test]
fn recorded_positions_lie_beyond_windows_chunks_and_original_contexts() {
    for (key, of, least) in [
        ("sliding_window", "sliding_window", 12),
        ("attention_chunk_size", "attention_chunk_size", 9),
        ("original_max_position_embeddings", "\"yarn\"", 15),
    ] {
        let mut seen = 0;
        // A GGUF file of Llama 4 has no place for the length of a chunk: it is as published, 8192.
        for case in Case::all().iter().filter(|case| !case.name.starts_with("llama4-gguf")) {
            let checkpoint = Checkpoint::open(&case.path).unwrap();
            let config = checkpoint.config();
            let Some(limit) = largest(config, key).filter(|_| config.to_string().contains(of)) else { continue };
            let last = case.prompts()[0].rows.iter().map(|(position, _)| *position).max().unwrap();
            assert!(last as u64 > limit, "{}: position {last} is the last, {key} is {limit}", case.name);
            seen += 1;
        }
        assert!(seen >= least, "{key} stands in {seen} checkpoints");
    }
}

/// Whatever the keys and values are rounded to: a fresh pass reads them from the cache, too.
#[test]
fn token_by_token_equals_a_fresh_pass_at_every_length() {
    for (case, kv) in Case::all().iter().flat_map(|case| [KvDtype::F32, KvDtype::Fp8].map(|kv| (case, kv))) {
        let name = format!("{} with {kv:?}", case.name);
        let mut driver = Driver::open_with(&case.path, Activations::F32, kv, |_| 256);
        let ids = &case.prompts()[0].ids;
        let mut seq = driver.start();
        for length in 1..=ids.len() {
            let decoded = driver.feed(&mut seq, &ids[length - 1..length]);
            let fresh = driver.whole(&ids[..length]);
            assert!(bits(&decoded) == bits(&fresh[length - 1..]), "{name}: {length} tokens");
        }
    }
}

#[test]
fn chunked_equals_the_whole() {
    for case in Case::all() {
        let name = &case.name;
        let mut driver = driver(&case);
        let ids = &case.prompts()[0].ids;
        let whole = bits(&driver.whole(ids));
        // Chunks shorter than a block, across blocks, and longer than the windows of 12 and 16 tokens.
        for chunk in [3, 8, 13, 20] {
            let mut seq = driver.start();
            let logits: Vec<_> = ids.chunks(chunk).flat_map(|tokens| driver.feed(&mut seq, tokens)).collect();
            assert!(bits(&logits) == whole, "{name}: chunks of {chunk}");
            driver.end(seq);
        }
    }
}

#[test]
fn a_ragged_batch_equals_each_alone() {
    for case in Case::all() {
        let name = &case.name;
        let mut driver = driver(&case);
        let golden = case.prompts();
        let (long, short) = (&golden[0].ids, &golden[1].ids);
        let (whole_long, whole_short) = (driver.whole(long), driver.whole(short));
        let (mut a, mut b, mut c) = (driver.start(), driver.start(), driver.start());
        // A chunk of a prompt; then its rest together with a prompt's start and a whole prompt; then single tokens.
        let mut logits_a = driver.feed(&mut a, &long[..10]);
        let mut together = driver.step(&mut [(&mut b, &short[..5]), (&mut a, &long[10..30]), (&mut c, long)]);
        let (logits_c, middle, mut logits_b) = (together.remove(2), together.remove(1), together.remove(0));
        logits_a.extend(middle);
        for step in 0..4 {
            let rows = driver.step(&mut [(&mut a, &long[30 + step..31 + step]), (&mut b, &short[5 + step..6 + step])]);
            logits_a.extend(rows[0].clone());
            logits_b.extend(rows[1].clone());
        }
        assert!(bits(&logits_a) == bits(&whole_long[..34]), "{name}: the chunked prompt");
        assert!(bits(&logits_b) == bits(&whole_short), "{name}: the short prompt");
        assert!(bits(&logits_c) == bits(&whole_long), "{name}: the whole prompt");
    }
}

/// Past the windows, in groups too small for the sequence if they did not give back what the window left behind.
#[test]
fn sliding_windows_work_from_the_blocks_they_keep() {
    for case in Case::all() {
        let name = &case.name;
        let golden = &case.prompts()[0].ids;
        let ids: Vec<u32> = golden.iter().chain(golden).copied().collect();
        let mut driver = driver(&case);
        if driver.info.groups.iter().all(Option::is_none) {
            continue;
        }
        let whole = bits(&driver.whole(&ids));
        for chunk in [1, 7] {
            // What the window sees, what a step adds, and the rest of a block.
            let room = |window: Option<u32>| window.map_or(ids.len(), |w| w as usize + 2 * BLOCK_SIZE);
            let mut small = Driver::open_with(&case.path, Activations::F32, KvDtype::F32, room);
            let mut seq = small.start();
            let logits: Vec<_> = ids.chunks(chunk).flat_map(|tokens| small.feed(&mut seq, tokens)).collect();
            assert!(bits(&logits) == whole, "{name}: chunks of {chunk}");
        }
    }
}

#[test]
fn a_step_may_ask_for_no_logits() {
    let checkpoint = Checkpoint::open(&golden_dir().join("llama")).unwrap();
    let info = (find(checkpoint.config()).unwrap().info)(checkpoint.config()).unwrap();
    let model = load(&checkpoint, Activations::F32, |_, _| {}).unwrap();
    let cache = KvCache::new(&info, &[1], 4, KvDtype::F32, &Device::Cpu).unwrap();
    let group = PagedBatch {
        block_size: 4,
        cu_seqlens: vec![0, 2],
        seq_lens: vec![2],
        block_offsets: vec![0, 1],
        blocks: vec![0],
        first_block: vec![0],
        slot_mapping: vec![0, 1],
        ..PagedBatch::default()
    };
    let (input_ids, positions) = (vec![1, 2], vec![0, 1]);
    let batch = ForwardBatch { input_ids, positions, groups: vec![group], ..ForwardBatch::default() };
    assert_eq!(model.forward(&batch, &cache).unwrap().dims(), [0, 512]);
    let outside = ForwardBatch { input_ids: vec![1, 512], ..batch };
    assert!(model.forward(&outside, &cache).is_err(), "a token outside the vocabulary");
}
