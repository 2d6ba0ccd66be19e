//! A survey tells, without reading the matrices, what loading would refuse; and all of it, where loading tells the first.

#[path = "scratch/mod.rs"]
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};

use plimsoll_models::{dummy_memory, load, memory, survey};
use plimsoll_nn::{Checkpoint, Footprint};
use plimsoll_ops::linear::Activations;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

use self::scratch::Scratch;

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
    let folder = Scratch::new("survey");
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

/// In a GGUF file, whose names are others than the model's.
#[test]
fn a_problem_of_a_gguf_file_is_told_once() {
    let folder = Scratch::new("survey-gguf");
    let path = folder.join("turned.gguf");
    let mut bytes = fs::read(golden().join("llama/q8_0.gguf")).unwrap();
    let name = "blk.0.ffn_up.weight";
    let dimensions = bytes.windows(name.len()).position(|found| found == name.as_bytes()).unwrap() + name.len() + 4;
    let [cols, rows] = [0, 8].map(|at| u64::from_le_bytes(bytes[dimensions + at..][..8].try_into().unwrap()));
    assert_eq!([rows, cols], [96, 64]);
    bytes[dimensions..][..16].copy_from_slice(&[rows.to_le_bytes(), cols.to_le_bytes()].concat());
    fs::write(&path, bytes).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let refused = load(&checkpoint, Activations::F32, |_, _| {}).map(drop).unwrap_err().to_string();
    assert!(refused.contains(name) && refused.contains("[64, 96]"), "{refused}");
    assert_eq!(survey(&checkpoint).iter().map(ToString::to_string).collect::<Vec<_>>(), [refused]);
}

/// A copy of a golden folder whose tensors' bytes are as `edit` leaves them.
fn edited(case: &str, edit: impl Fn(&str, &mut Vec<u8>)) -> Scratch {
    let folder = Scratch::new("survey-edited");
    fs::copy(golden().join(case).join("config.json"), folder.join("config.json")).unwrap();
    let original = fs::read(golden().join(case).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&original).unwrap();
    let edited: Vec<_> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let mut data = view.data().to_vec();
            edit(&name, &mut data);
            (name, view.dtype(), view.shape().to_vec(), data)
        })
        .collect();
    let views =
        edited.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(folder.join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    folder
}

/// Kernels for experts take one form: of experts of which some are reordered, all are widened.
#[test]
fn experts_of_a_layer_are_widened_together() {
    let gpu = |is_reordered: fn(&str) -> bool| {
        let folder = edited("qwen3_moe-gptq", |name, data| {
            if name.contains("layers.1.mlp.experts.") && name.ends_with("up_proj.g_idx") && is_reordered(name) {
                data.rotate_left(4); // the columns of the first of two groups are all but one, and the last
            }
        });
        let checkpoint = Checkpoint::open(&folder).unwrap();
        load(&checkpoint, Activations::F32, |_, _| {}).unwrap();
        memory(&checkpoint, None, Footprint::Gpu).unwrap()
    };
    let (none, one, all) = (gpu(|_| false), gpu(|name| name.contains("experts.2.")), gpu(|_| true));
    assert!(none < one, "{none} and {one}");
    assert_eq!(one, all);
}

/// What is planned with is found without looking at a number; that one is none is for the load to say.
#[test]
fn sizes_are_found_without_reading_scales_or_norms() {
    for (case, names) in [
        ("llama-fp8-block", &["weight_scale_inv", "norm.weight"][..]),
        ("llama-gptq", &["down_proj.scales"]),
        ("gpt-oss-mxfp4", &["gate_up_proj_scales", "proj_bias"]),
    ] {
        for name in names {
            let folder = edited(case, |found, data| {
                if found.ends_with(name) {
                    data.fill(0xff);
                }
            });
            let [whole, harmed] =
                [golden().join(case), folder.to_path_buf()].map(|path| Checkpoint::open(&path).unwrap());
            assert!(!survey(&harmed).is_empty(), "{case}: {name}");
            for on in [Footprint::Stored, Footprint::Cpu, Footprint::Gpu] {
                let [whole, harmed] = [&whole, &harmed].map(|checkpoint| memory(checkpoint, None, on).unwrap());
                assert_eq!(whole, harmed, "{case}: {name}, {on:?}");
            }
        }
    }
}

#[test]
fn norms_that_are_not_numbers_are_refused_by_name() {
    let folder = Scratch::new("survey-nan");
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
    // But embeddings, whose rows are gathered, in bf16: here from Q4_K, 144 bytes for 256 elements.
    let (mixed, elements) = ("llama-gguf-mixed/mixed.gguf", 512 * 256);
    let packed = of(mixed, Footprint::Stored) - elements * 144 / 256;
    assert!(of(mixed, Footprint::Gpu) >= packed + 2 * elements);
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
