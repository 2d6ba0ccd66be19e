//! `plimsoll inspect`: what it says of sound checkpoints, of damaged ones, and of configs alone.

#[allow(dead_code, reason = "each test uses a part of it")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use support::{plimsoll, run};

/// What `inspect ARGUMENTS --json` printed, and whether it ended well.
fn inspect(arguments: &[&str]) -> (Value, bool) {
    let output = plimsoll().arg("inspect").args(arguments).arg("--json").output().expect("plimsoll starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {said}"));
    (report, output.status.success())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A copy of a golden checkpoint that a test may damage.
fn copy_of(golden: &str, test: &str) -> PathBuf {
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("inspect-{test}"));
    let _ = fs::remove_dir_all(&copy); // of an earlier run
    fs::create_dir_all(&copy).expect("writable");
    for entry in fs::read_dir(repository().join("tests/golden").join(golden)).expect("golden data") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), copy.join(entry.file_name())).expect("writable");
    }
    copy
}

fn problems(report: &Value) -> Vec<&str> {
    report["problems"].as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

#[test]
fn a_served_model_is_described() {
    let (report, is_sound) = inspect(&["smollm2-135m-instruct", "--max-model-len", "1024", "--max-num-seqs", "4"]);
    assert!(is_sound && problems(&report).is_empty(), "{report}");
    assert_eq!(report["architecture"]["name"], "LlamaForCausalLM");
    assert_eq!(report["parameters"], 134_515_008);
    assert_eq!(report["stored_as"], "gguf");
    assert_eq!(report["tokenizer"], json!({"vocab_size": 49152, "has_chat_template": true}));
    let tensors = report["tensors"].as_array().expect("a list");
    let queries = tensors.iter().find(|group| group["name"] == "blk.*.attn_q.weight").expect("queries");
    assert_eq!((&queries["count"], &queries["shape"]), (&json!(30), &json!([576, 576])));
    let bytes: u64 = tensors.iter().filter_map(|group| group["bytes"].as_u64()).sum();
    assert_eq!(report["stored_bytes"], bytes);
    let memory = &report["memory"];
    // 30 layers, 3 heads of 64, keys and values, two bytes each.
    assert_eq!(memory["kv_a_token"], 30 * 3 * 64 * 2 * 2);
    assert_eq!(memory["kv_a_request"], 1024 * 30 * 3 * 64 * 2 * 2);
    assert_eq!(memory["kv_all_requests"], 4 * 1024 * 30 * 3 * 64 * 2 * 2);
    assert!(memory["serve"]["starts"]["full_length_requests"].as_u64() >= Some(4), "{memory}");

    let (halved, _) = inspect(&["smollm2-135m-instruct", "--kv-cache-dtype", "fp8"]);
    assert_eq!(halved["memory"]["kv_a_token"], 30 * 3 * 64 * 2);

    let output = run(&["inspect", "smollm2-135m-instruct"]);
    let text = String::from_utf8_lossy(&output.stdout);
    for said in ["134.5 million", "blk.*.attn_q.weight", "KV cache, a token", "with a chat template", "it would load"] {
        assert!(text.contains(said), "{said} is not in {text}");
    }
}

#[test]
fn a_config_alone_is_enough() {
    let config = repository().join("configs/architectures/gemma-3-27b-it.json");
    let (report, is_sound) = inspect(&["--config", &config.to_string_lossy(), "--max-model-len", "8192"]);
    assert!(is_sound, "{report}");
    assert_eq!(report["stored_as"], "dummy");
    let groups = report["memory"]["kv_groups"].as_array().expect("a list");
    assert_eq!(groups.iter().map(|group| group["layers"].as_u64()).sum::<Option<u64>>(), Some(62));
    assert_eq!(groups[1]["window"], 1024);
}

#[test]
fn every_problem_is_told() {
    let folder = copy_of("llama3", "problems");
    let index = folder.join("model.safetensors.index.json");
    let config = folder.join("config.json");
    let edit = |file: &Path, change: &dyn Fn(&mut Value)| {
        let mut json = serde_json::from_slice(&fs::read(file).expect("readable")).expect("JSON");
        change(&mut json);
        fs::write(file, json.to_string()).expect("writable");
    };
    // Wider than the file has it: the matrices of both layers are misshapen, and the tokenizer is not there at all.
    edit(&config, &|config| config["intermediate_size"] = json!(160));
    let (report, is_sound) = inspect(&[&folder.to_string_lossy()]);
    let told = problems(&report);
    assert!(!is_sound, "{report}");
    for name in ["layers.0.mlp.up_proj", "layers.1.mlp.gate_proj", "layers.1.mlp.down_proj", "tokenizer"] {
        assert!(told.iter().any(|problem| problem.contains(name)), "{name} is not in {told:?}");
    }

    edit(&config, &|config| config["architectures"] = json!(["OPTForCausalLM"]));
    let (report, is_sound) = inspect(&[&folder.to_string_lossy()]);
    assert!(!is_sound && problems(&report)[0].contains("OPTForCausalLM"), "{report}");
    assert_eq!((&report["claimed_architecture"], &report["architecture"]), (&json!("OPTForCausalLM"), &Value::Null));
    assert!(!report["tensors"].as_array().expect("a list").is_empty(), "what the files hold is told all the same");

    edit(&index, &|index| index["weight_map"]["model.norm.weight"] = json!("../escaped.safetensors"));
    let (report, is_sound) = inspect(&[&folder.to_string_lossy()]);
    assert!(!is_sound && problems(&report)[0].contains("model.norm.weight"), "{report}");
}

#[test]
fn nothing_to_inspect_says_what_to_give() {
    for (arguments, named) in [
        (&["inspect"][..], "--config FILE.json"),
        (&["inspect", "no-such-model"], "smollm2-135m-instruct"),
        (&["inspect", "--config", "missing.json"], "missing.json"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(named), "{arguments:?} should name {named}: {said}");
    }
    let help = run(&["inspect", "--help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("--max-num-seqs"));
}
