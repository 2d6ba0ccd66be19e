//! A survey tells, without reading the matrices, what loading would refuse; and all of it, where loading tells the first.

use std::fs;
use std::path::{Path, PathBuf};

use plimsoll_models::{dummy_memory, load, memory, survey};
use plimsoll_nn::{Checkpoint, Footprint};
use plimsoll_ops::linear::Activations;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// Every checkpoint below `folder`.
fn checkpoints(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            checkpoints(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "gguf") {
            found.push(path);
        } else if path.file_name().is_some_and(|name| name == "config.json") {
            found.push(folder.to_owned());
        }
    }
}

#[test]
fn what_loads_has_no_problems() {
    let mut found = Vec::new();
    checkpoints(&golden(), &mut found);
    assert!(found.len() > 10, "{found:?}");
    for path in found {
        let checkpoint = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let problems = survey(&checkpoint);
        assert!(problems.is_empty(), "{}: {problems:?}", path.display());
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("survey");
    let _ = fs::remove_dir_all(&folder); // of an earlier run
    fs::create_dir_all(&folder).unwrap();
    fs::copy(golden().join("llama/config.json"), folder.join("config.json")).unwrap();
    let original = fs::read(golden().join("llama/model.safetensors")).unwrap();
    let mut tensors = SafeTensors::deserialize(&original).unwrap().tensors();
    let (missing, turned, odd) = ("model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight");
    let mut edit = |name: &str, with: Option<(Dtype, bool)>| {
        let at = tensors.iter().position(|(found, _)| found == name).unwrap();
        let (_, view) = tensors.remove(at);
        let Some((dtype, reversed)) = with else { return };
        let mut shape = view.shape().to_vec();
        if reversed {
            shape.reverse();
        }
        tensors.push((name.to_owned(), TensorView::new(dtype, shape, view.data()).unwrap()));
    };
    edit(missing, None);
    edit(turned, Some((Dtype::F32, true)));
    edit(odd, Some((Dtype::I32, false)));
    let extra = [0; 8];
    tensors.push(("model.layers.0.extra.weight".into(), TensorView::new(Dtype::F32, vec![2], &extra).unwrap()));
    fs::write(folder.join("model.safetensors"), serialize(tensors, None).unwrap()).unwrap();

    let checkpoint = Checkpoint::open(&folder).unwrap();
    let problems: Vec<String> = survey(&checkpoint).iter().map(ToString::to_string).collect();
    for name in [missing, turned, odd] {
        assert!(problems.iter().any(|problem| problem.contains(name)), "{name} is not in {problems:?}");
    }
    // What a problem is about was asked for, so it is not among the unused.
    assert_eq!(problems.len(), 4, "{problems:?}");
    assert!(
        problems[3].contains("1 of the checkpoint's tensors, among them model.layers.0.extra.weight"),
        "{problems:?}"
    );
    assert!(load(&checkpoint, Activations::F32, |_, _| {}).is_err());
}

#[test]
fn norms_that_are_not_numbers_are_refused_by_name() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("survey-nan");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(golden().join("llama/config.json"), folder.join("config.json")).unwrap();
    let original = fs::read(golden().join("llama/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&original).unwrap();
    let name = "model.layers.0.input_layernorm.weight";
    let view = tensors.tensor(name).unwrap();
    for value in [f32::NAN, f32::INFINITY] {
        let mut data = view.data().to_vec();
        data[4..8].copy_from_slice(&value.to_le_bytes());
        let edited = tensors.tensors().into_iter().map(|(n, view)| match n == name {
            true => (n, TensorView::new(Dtype::F32, vec![view.shape()[0]], &data).unwrap()),
            false => (n, view),
        });
        fs::write(folder.join("model.safetensors"), serialize(edited.collect::<Vec<_>>(), None).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let refused = load(&checkpoint, Activations::F32, |_, _| {}).map(drop).unwrap_err().to_string();
        assert!(refused.contains(name) && refused.contains("element 1 is"), "{refused}");
        assert_eq!(survey(&checkpoint).iter().map(ToString::to_string).collect::<Vec<_>>(), [refused]);
    }
}

#[test]
fn memory_is_what_the_weights_become() {
    let open = |name: &str| Checkpoint::open(&golden().join(name)).unwrap();
    let of = |name: &str, on| memory(&open(name), None, on).unwrap();
    assert_eq!(of("llama", Footprint::Stored), open("llama").weight_bytes());
    // f32 there, bf16 but for its norms here.
    let gpu = of("llama", Footprint::Gpu);
    assert!(gpu < of("llama", Footprint::Cpu) && 2 * gpu >= open("llama").weight_bytes());
    // What a GPU's kernels read stays packed, in whatever order its columns are.
    assert!(of("gpt-oss-mxfp4", Footprint::Gpu) < of("gpt-oss", Footprint::Gpu));
    assert!(of("llama-gptq", Footprint::Gpu) < of("llama", Footprint::Gpu));
    assert_eq!(of("llama-gptq", Footprint::Gpu), of("llama-gptq-act-order", Footprint::Gpu));
    assert!(of("llama/q4_0.gguf", Footprint::Cpu) < of("llama/q4_0.gguf", Footprint::Gpu));
}

#[test]
fn a_config_s_claims_are_counted_and_not_made() {
    let text = fs::read(golden().join("gpt-oss/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for size in ["hidden_size", "intermediate_size", "vocab_size"] {
        config[size] = serde_json::json!(1 << 21);
    }
    for on in [Footprint::Stored, Footprint::Cpu, Footprint::Gpu] {
        assert!(dummy_memory(&config, None, on).unwrap() > 1 << 42);
    }
}
