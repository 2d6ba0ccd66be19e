//! Models of made-up weights: as large as they say, the same every time, and computing numbers.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use plimsoll_models::{dummy_bytes, find, load_dummy};
use plimsoll_nn::Checkpoint;
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use serde_json::{Value, json};

use crate::driver::{Driver, golden_dir};

const CASES: &[&str] = &[
    "llama",
    "llama3",
    "mistral",
    "gemma3",
    "qwen3",
    "qwen3-yarn",
    "gpt-oss",
    "qwen3_moe",
    "qwen3_moe-mixed",
    "llama4",
];

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

/// Bytes of the published weights, in units of 10^9, of the models' text parts: two for each parameter that the makers
/// count. Of MXFP4 the files were counted; of other quantized ones each matrix but embeddings, head, and of Llama 4
/// attention and routers has a byte a parameter; or half of one, and for each 128 the six of the scale and the zero that
/// rows are kept with.
const PUBLISHED: &[(&str, f64)] = &[
    ("llama-3.1-8b", 2.0 * 8.03),
    ("llama-3.1-8b-fp8", 6.98 + 2.0 * 1.05),
    ("llama-3.1-8b-int4", 6.98 * (0.5 + 6.0 / 128.0) + 2.0 * 1.05),
    ("llama-3.2-1b", 2.0 * 1.24),
    ("llama-3.3-70b-instruct", 2.0 * 70.55),
    ("mistral-7b-instruct-v0.3", 2.0 * 7.25),
    ("gemma-3-270m-it", 2.0 * 0.268),
    ("gemma-3-1b-it", 2.0 * 1.0),
    ("gemma-3-4b-it", 2.0 * (4.3 - 0.42)),
    ("gemma-3-12b-it", 2.0 * (12.19 - 0.42)),
    ("gemma-3-27b-it", 2.0 * 27.0),
    ("qwen3-8b", 2.0 * 8.19),
    ("qwen3-30b-a3b", 2.0 * 30.53),
    ("llama-4-scout-17b-16e-instruct", 2.0 * (108.64 - 0.87)),
    ("llama-4-scout-17b-16e-instruct-fp8", 102.68 + 2.0 * 5.09),
    ("llama-4-scout-17b-16e-instruct-int4", 102.68 * (0.5 + 6.0 / 128.0) + 2.0 * 5.09),
    // 400.7 billion parameters without the vision tower.
    ("llama-4-maverick-17b-128e-instruct-fp8", 400.7 + 5.2),
    ("gpt-oss-20b", 13.76),
    ("gpt-oss-120b", 65.25),
];

#[test]
fn the_bundled_configs_are_as_large_as_published() {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/architectures");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), PUBLISHED.len(), "every config has its size here");
    for (name, gigabytes) in PUBLISHED {
        let text = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["torch_dtype"], "bfloat16", "{name}");
        let found = dummy_bytes(&config).unwrap() as f64 / 1e9;
        println!("{name}: {found:.3} GB");
        assert!((found / gigabytes - 1.0).abs() < 0.01, "{name}: {found:.3} GB");
        let info = (find(&config).unwrap().info)(&config).unwrap();
        assert!(info.max_position_embeddings >= 32768, "{name}");
    }
}
