//! Real models against transformers: greedy continuations recorded in tests/golden/real.

use std::path::{Path, PathBuf};

use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use serde::Deserialize;

use crate::driver::{Driver, argmax, golden_dir};

#[derive(Deserialize)]
struct RealGolden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    /// Transformers' greedy continuation, in float32 over the dequantized weights.
    ids: Vec<u32>,
    /// How far each id's logit lies above the runner-up's.
    gaps: Vec<f32>,
}

/// Where the likeliest token is not the recorded one: its gap in the reference.
struct Agreement {
    tokens: usize,
    disagreements: Vec<f32>,
}

/// Feeds a model the recorded continuations and compares its likeliest token at every step.
fn compare(gguf: &Path, name: &str, activations: Activations, kv: KvDtype) -> Agreement {
    let recorded = std::fs::read(golden_dir().join(format!("real/{name}.json"))).unwrap();
    let golden: RealGolden = serde_json::from_slice(&recorded).unwrap();
    let longest = golden.cases.iter().map(|case| case.prompt_ids.len() + case.ids.len()).max().unwrap();
    let mut driver = Driver::open_with(gguf, activations, kv, |_| longest);
    let mut agreement = Agreement { tokens: 0, disagreements: Vec::new() };
    for case in &golden.cases {
        let mut seq = driver.start();
        let mut logits = driver.feed_for_last(&mut seq, &case.prompt_ids);
        for (&id, &gap) in case.ids.iter().zip(&case.gaps) {
            agreement.tokens += 1;
            if argmax(&logits) != id {
                agreement.disagreements.push(gap);
            }
            logits = driver.feed_for_last(&mut seq, &[id]);
        }
        driver.end(seq);
    }
    let Agreement { tokens, disagreements } = &agreement;
    println!("{name}, {activations:?}: {} of {tokens} disagree, gaps {disagreements:?}", disagreements.len());
    agreement
}

/// In f32 the continuation is transformers', but where two tokens are as good as equal.
fn check_f32(gguf: &Path, name: &str) {
    let agreement = compare(gguf, name, Activations::F32, KvDtype::F32);
    assert!(agreement.tokens > 100, "{name}: only {} tokens are recorded", agreement.tokens);
    assert!(agreement.disagreements.iter().all(|&gap| gap < 1e-3), "{name}: {:?}", agreement.disagreements);
}

/// As served: int8 activations and an f16 cache.
fn check_int8(gguf: &Path, name: &str) {
    let agreement = compare(gguf, name, Activations::Int8, KvDtype::F16);
    let share = 1.0 - agreement.disagreements.len() as f32 / agreement.tokens as f32;
    assert!(share >= 0.95, "{name}: agrees on {share}");
}

/// The catalogue's file of a model, where `plimsoll pull` puts it.
fn find(name: &str, file: &str) -> PathBuf {
    let folder = match std::env::var_os("PLIMSOLL_MODELS_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/plimsoll/models"),
    };
    let path = folder.join(name).join(file);
    assert!(path.exists(), "{} is missing: run `plimsoll pull {name}`", path.display());
    path
}

#[test]
#[ignore = "needs `plimsoll pull smollm2-135m-instruct`"]
fn smollm2_continues_as_transformers_does() {
    let gguf = find("smollm2-135m-instruct", "SmolLM2-135M-Instruct.Q4_1.gguf");
    check_f32(&gguf, "smollm2-135m-instruct");
    check_int8(&gguf, "smollm2-135m-instruct");
}

#[test]
#[ignore = "needs `plimsoll pull gemma-3-270m`"]
fn gemma3_continues_as_transformers_does() {
    let gguf = find("gemma-3-270m", "gemma-3-270m-q4_k_m.gguf");
    check_f32(&gguf, "gemma-3-270m");
    check_int8(&gguf, "gemma-3-270m");
}
