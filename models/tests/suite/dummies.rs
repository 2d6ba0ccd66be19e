//! Models of made-up weights: as large as they say, the same every time, and computing numbers.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use plimsoll_models::{dummy_bytes, find, load_dummy};
use plimsoll_nn::Checkpoint;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use serde_json::{Value, json};

use crate::driver::{Driver, golden_dir};

const CASES: &[&str] = &["llama", "llama3", "mistral", "gemma3", "qwen3", "qwen3-yarn", "cpu/gpt-oss"];

fn config(case: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden_dir().join(case).join("config.json")).unwrap()).unwrap()
}

fn driver(config: &Value, seed: u64) -> Driver {
    let info = (find(config).unwrap().info)(config).unwrap();
    let model = load_dummy(config, seed, Activations::F32, |_| {}).unwrap();
    Driver::over(info, model, KvDtype::F32, |_| 64)
}

#[test]
fn a_dry_run_counts_what_the_checkpoint_holds_and_the_loading_makes() {
    for case in CASES {
        let config = config(case);
        let counted = dummy_bytes(&config).unwrap();
        assert_eq!(counted, Checkpoint::open(&golden_dir().join(case)).unwrap().weight_bytes(), "{case}");
        let made = Cell::new(0);
        load_dummy(&config, 0, Activations::F32, |bytes| made.set(bytes)).unwrap();
        assert_eq!(made.get(), counted, "{case}");
    }
}

#[test]
fn dummies_compute_and_their_seed_decides() {
    for case in CASES {
        let config = config(case);
        let ids: Vec<u32> = (0..40).map(|i| i * 37 % 512).collect();
        let logits = |seed| driver(&config, seed).whole(&ids);
        let first = logits(1);
        let largest =
            first.iter().flatten().fold(0f32, |largest, x| if x.is_finite() { largest.max(x.abs()) } else { f32::NAN });
        assert!(largest > 1e-3 && largest < 50.0, "{case}: {largest}");
        assert_ne!(first[38], first[39], "{case}: tokens differ");
        assert_eq!(first, logits(1), "{case}");
        assert_ne!(first, logits(2), "{case}");
    }
}

#[test]
fn configs_that_no_model_is_made_of() {
    let refused = |config: Value| dummy_bytes(&config).unwrap_err().to_string();
    assert!(refused(json!({"architectures": ["OPTForCausalLM"]})).contains("OPTForCausalLM"));
    let mut llama = config("llama");
    llama["dtype"] = json!("int4");
    assert!(refused(llama).contains("int4"));
}

/// The published numbers of parameters, in billions.
const PUBLISHED: &[(&str, f64)] = &[
    ("llama-3.1-8b", 8.03),
    ("llama-3.2-1b", 1.24),
    ("gemma-3-27b-it", 27.0),
    ("qwen3-8b", 8.19),
    ("gpt-oss-20b", 20.9),
];

#[test]
fn the_bundled_configs_are_as_large_as_published() {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/architectures");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), PUBLISHED.len(), "every config has its size here");
    for (name, billions) in PUBLISHED {
        let text = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["torch_dtype"], "bfloat16", "{name}");
        let parameters = dummy_bytes(&config).unwrap() as f64 / 2.0 / 1e9;
        assert!((parameters / billions - 1.0).abs() < 0.01, "{name}: {parameters:.3} billion parameters");
        let info = (find(&config).unwrap().info)(&config).unwrap();
        assert!(info.max_position_embeddings >= 32768, "{name}");
    }
}
