//! Checkpoints that must be refused, each with a message that names the culprit. (Damaged GGUF headers are tested
//! where they are parsed, in `nn`.)

use std::fs;
use std::path::Path;

use plimsoll_models::{find, load, survey};
use plimsoll_nn::{Checkpoint, CheckpointError};
use plimsoll_ops::linear::Activations;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::driver::{Driver, Golden, golden_dir};
use crate::scratch::Scratch;

/// A copy of a tiny checkpoint that a test may damage.
pub(crate) struct Copy(pub(crate) Scratch);

impl Copy {
    pub(crate) fn of(case: &str, test: &str) -> Self {
        let folder = Scratch::new(&format!("refusals-{test}"));
        for entry in fs::read_dir(golden_dir().join(case)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        Self(folder)
    }

    pub(crate) fn edit_json(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.0.join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut value);
        fs::write(path, value.to_string()).unwrap();
    }

    fn edit_bytes(&self, file: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let path = self.0.join(file);
        let mut bytes = fs::read(&path).unwrap();
        edit(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    /// Opens and loads what `file` names in the folder ("" is the folder), which must fail; and as a survey says, where that
    /// does not lie in a matrix's own numbers.
    #[track_caller]
    pub(crate) fn check(&self, file: &str, expected: &[&str]) {
        let path = if file.is_empty() { self.0.to_path_buf() } else { self.0.join(file) };
        let problem = match Checkpoint::open(&path) {
            Err(problem) => problem.to_string(),
            Ok(checkpoint) => {
                let problem = load(&checkpoint, Activations::F32, |_, _| {}).map(drop).expect_err("must be refused");
                let told: Vec<String> = survey(&checkpoint).iter().map(ToString::to_string).collect();
                let is_told = told.contains(&problem.to_string()) || matches!(problem, CheckpointError::Row { .. });
                assert!(is_told, "a survey says {told:?}, not {problem}");
                problem.to_string()
            }
        };
        for part in expected {
            assert!(problem.contains(part), "{part:?} is not in {problem:?}");
        }
    }
}

#[test]
fn an_undamaged_copy_loads_and_reports_progress() {
    let (llama, gpt_oss) = (Copy::of("llama", "undamaged"), Copy::of("gpt-oss-mxfp4", "undamaged-experts"));
    let files = ["", "f16.gguf", "q8_0.gguf", "q4_0.gguf"].map(|file| llama.0.join(file));
    for path in files.into_iter().chain([gpt_oss.0.to_path_buf()]) {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let seen = std::cell::RefCell::new(Vec::new());
        load(&checkpoint, Activations::F32, |done, total| seen.borrow_mut().push((done, total))).unwrap();
        let seen = seen.into_inner();
        assert!(seen.is_sorted() && seen.len() > 10);
        assert_eq!(*seen.last().unwrap(), (checkpoint.weight_bytes(), checkpoint.weight_bytes()));
    }
}

#[test]
fn configs_that_would_change_the_result() {
    let llama = Copy::of("llama", "llama-config");
    let gemma3 = Copy::of("gemma3", "gemma3-config");
    let qwen3 = Copy::of("qwen3", "qwen3-config");
    let gpt_oss = Copy::of("gpt-oss", "gpt-oss-config");
    let llama4 = Copy::of("llama4", "llama4-config");
    let cases: &[(&Copy, &str, Value)] = &[
        (&llama, "architectures", json!(["OPTForCausalLM"])),
        (&llama, "architectures", Value::Null),
        (&llama, "quantization_config", json!({"quant_method": "gptq"})),
        (&llama, "attention_bias", json!(true)),
        (&llama, "mlp_bias", json!(true)),
        (&llama, "hidden_act", json!("gelu")),
        (&llama, "rope_parameters", json!({"rope_type": "longrope", "factor": 2.0})),
        (&llama, "rope_parameters", json!({"rope_type": "yarn", "factor": 2.0})),
        (&llama, "rope_parameters", json!("default")),
        (&llama, "num_key_value_heads", json!(3)),
        (&llama, "head_dim", json!(15)),
        (&llama, "hidden_size", json!(-64)),
        (&llama, "hidden_size", json!(1u64 << 60)),
        (&llama, "num_hidden_layers", json!(1u64 << 40)),
        (&llama, "num_hidden_layers", json!(1025)),
        (&llama, "head_dim", json!(1 << 21)),
        (&llama, "vocab_size", Value::Null),
        (&llama, "rms_norm_eps", json!("small")),
        (&gemma3, "layer_types", json!(["full_attention"])),
        (&gemma3, "rope_parameters", json!({"rope_type": "linear", "factor": 8.0})),
        (&gemma3, "rope_parameters", json!({"full_attention": {"rope_type": "linear", "factor": 8.0}})),
        (&gemma3, "rope_scaling", json!({"rope_type": "linear", "factor": 3.0})),
        (&gemma3, "layer_types", json!(["chunked_attention", "", "", "", "", ""])),
        (&gemma3, "attn_logit_softcapping", json!(50.0)),
        (&gemma3, "use_bidirectional_attention", json!(true)),
        (&gemma3, "hidden_activation", json!("relu")),
        (&gemma3, "sliding_window", Value::Null),
        (&qwen3, "attention_bias", json!(true)),
        (&qwen3, "use_sliding_window", json!(true)),
        (&qwen3, "layer_types", json!(["full_attention", "sliding_attention"])),
        (&qwen3, "num_experts", json!(128)),
        (&qwen3, "hidden_act", json!("gelu")),
        (&qwen3, "head_dim", json!(33)),
        (&gpt_oss, "attention_bias", json!(false)),
        (&gpt_oss, "hidden_act", json!("gelu")),
        (&gpt_oss, "quantization_config", json!({"quant_method": "gptq"})),
        (&gpt_oss, "rope_parameters", Value::Null),
        (&gpt_oss, "layer_types", json!(["full_attention", "chunked_attention"])),
        (&gpt_oss, "layer_types", json!(["full_attention"])),
        (&gpt_oss, "num_experts_per_tok", json!(7)),
        (&gpt_oss, "num_local_experts", Value::Null),
        (&gpt_oss, "num_local_experts", json!(1 << 20)),
        (&llama4, "moe_layers", json!([0, 99])),
        (&llama4, "moe_layers", json!([-1])),
        (&gpt_oss, "sliding_window", Value::Null),
        (&gpt_oss, "swiglu_limit", json!(-1.0)),
    ];
    for (copy, field, value) in cases {
        let mut before = Value::Null;
        copy.edit_json("config.json", |config| {
            before = config[*field].take();
            config[*field] = value.clone();
        });
        let named = match *field {
            "architectures" if *value == json!(["OPTForCausalLM"]) => "OPTForCausalLM",
            "rope_parameters" if value.is_null() => "rope_scaling",
            field => field,
        };
        copy.check("", &[named]);
        copy.edit_json("config.json", |config| config[*field] = before);
    }
    llama.edit_bytes("config.json", |bytes| bytes.truncate(100));
    llama.check("", &["config.json", "JSON"]);
    fs::remove_file(llama.0.join("config.json")).unwrap();
    llama.check("", &["config.json"]);
}

#[test]
fn older_spellings_mean_the_same() {
    let (llama, gemma3) = (Copy::of("llama3", "old-llama"), Copy::of("gemma3", "old-gemma"));
    llama.edit_json("config.json", |config| {
        let mut rope = config["rope_parameters"].take();
        config["rope_theta"] = rope["rope_theta"].take();
        config["rope_scaling"] = rope;
        config["torch_dtype"] = config["dtype"].take();
    });
    gemma3.edit_json("config.json", |config| {
        let mut rope = config["rope_parameters"].take();
        config["rope_theta"] = rope["full_attention"]["rope_theta"].take();
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"].take();
        config["rope_scaling"] = rope["full_attention"].take();
        config["layer_types"] = Value::Null;
        config["sliding_window_pattern"] = json!(6);
    });
    for (case, old) in [("llama3", llama), ("gemma3", gemma3)] {
        let info = |path: &Path| {
            let checkpoint = Checkpoint::open(path).unwrap();
            (find(checkpoint.config()).unwrap().info)(checkpoint.config()).unwrap()
        };
        assert_eq!(info(&old.0), info(&golden_dir().join(case)));
        let ids = &Golden::read(case).prompts("")[0].ids;
        let logits = |path: &Path| Driver::open(path, Activations::F32, 64).whole(ids);
        assert_eq!(logits(&old.0), logits(&golden_dir().join(case)));
    }
}

/// Writes a copy's tensors anew, each as `edit` has it: under what name, and with what shape and bytes; or not at all.
fn rewrite(copy: &Copy, edit: impl Fn(&str, &TensorView<'_>) -> Option<(String, Vec<usize>, Vec<u8>)>) {
    let path = copy.0.join("model.safetensors");
    let original = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&original).unwrap();
    let edited: Vec<_> =
        tensors.tensors().into_iter().filter_map(|(name, view)| Some((edit(&name, &view)?, view.dtype()))).collect();
    let views =
        edited.iter().map(|((name, shape, data), dtype)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn the_text_of_a_model_that_also_sees_is_found_by_either_name() {
    let copy = Copy::of("gemma3-seeing", "seeing");
    rewrite(&copy, |name, view| {
        let name = match name.strip_prefix("language_model.model.") {
            Some(inner) => format!("model.language_model.{inner}"),
            None => format!("model.{name}"),
        };
        Some((name, view.shape().to_vec(), view.data().to_vec()))
    });
    let ids = &Golden::read("gemma3-seeing").prompts("")[0].ids;
    let logits = |path: &Path| Driver::open(path, Activations::F32, 64).whole(ids);
    assert_eq!(logits(&copy.0), logits(&golden_dir().join("gemma3-seeing")));
    copy.edit_json("config.json", |config| config["text_config"]["num_hidden_layers"] = json!(3));
    copy.check("", &["text_config.layer_types"]);
    copy.edit_json("config.json", |config| config["text_config"]["layer_types"] = Value::Null);
    copy.check("", &["model.language_model.layers.2", "missing"]);
}

#[test]
fn lists_of_experts_are_found_by_either_name() {
    let copy = Copy::of("gpt-oss-gptq-listed", "lists");
    rewrite(&copy, |name, view| {
        let name = name.replace(".gate_up.", ".gate_up_projs.").replace(".down.", ".down_projs.");
        Some((name, view.shape().to_vec(), view.data().to_vec()))
    });
    let ids = &Golden::read("gpt-oss-gptq-listed").prompts("")[0].ids;
    let logits = |path: &Path| Driver::open(path, Activations::F32, 64).whole(ids);
    assert_eq!(logits(&copy.0), logits(&golden_dir().join("gpt-oss-gptq-listed")));
    let lost = "model.layers.1.mlp.experts.down_projs.3.qweight";
    rewrite(&copy, |name, view| {
        Some((name.to_owned(), view.shape().to_vec(), view.data().to_vec())).filter(|_| name != lost)
    });
    copy.check("", &["model.layers.1.mlp.experts.down_projs.3", "missing"]);
}

/// A listed expert that was left as it was, whose own numbers are damaged: told by tensor and row, as any other's.
#[test]
fn a_listed_expert_that_is_not_of_numbers() {
    let copy = Copy::of("gpt-oss-gptq-listed", "listed-nan");
    let module = "model.layers.1.mlp.experts.down.3";
    let aside = ["qzeros", "scales", "g_idx"].map(|tensor| format!("{module}.{tensor}"));
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&original).unwrap();
    let kept = tensors.tensors().into_iter().filter(|(name, _)| !aside.contains(name));
    let kept: Vec<_> = kept.filter(|(name, _)| *name != format!("{module}.qweight")).collect();
    for value in [0x3c00u16, 0x7e00] {
        let elements =
            [0x3c00u16; 64 * 64].iter().enumerate().map(|(at, &one)| if at == 64 * 5 + 7 { value } else { one });
        let bytes: Vec<u8> = elements.flat_map(u16::to_le_bytes).collect();
        let weight = (format!("{module}.weight"), TensorView::new(Dtype::F16, vec![64, 64], &bytes).unwrap());
        let all = kept.iter().cloned().chain([weight]);
        fs::write(copy.0.join("model.safetensors"), safetensors::serialize(all, None).unwrap()).unwrap();
        if value == 0x3c00 {
            load(&Checkpoint::open(&copy.0).unwrap(), Activations::F32, |_, _| {}).unwrap();
        }
    }
    copy.check("", &[&format!("{module}.weight"), "row 5 ", "not a number"]);
}

#[test]
fn experts_that_are_not_there() {
    let keep = |name: &str, view: &TensorView<'_>| Some((name.to_owned(), view.shape().to_vec(), view.data().to_vec()));
    let modules = Copy::of("qwen3_moe", "expert-modules");
    let lost = "model.layers.1.mlp.experts.5.up_proj.weight";
    rewrite(&modules, |name, view| keep(name, view).filter(|_| name != lost));
    modules.check("", &[lost, "missing"]);
    modules.edit_json("config.json", |config| config["num_local_experts"] = json!(5));
    modules.check("", &["model.layers.0.mlp.gate", "[6, 64]", "[5, 64]"]);
    let fused = Copy::of("llama4", "expert-stack");
    let lost = "model.layers.0.feed_forward.shared_expert.up_proj.weight";
    rewrite(&fused, |name, view| keep(name, view).filter(|_| name != lost));
    fused.check("", &[lost, "missing"]);
    fused.edit_json("config.json", |config| config["moe_layers"] = json!([2]));
    fused.check("", &["model.layers.0.feed_forward.gate_proj", "missing"]);
    let fused = Copy::of("llama4", "expert-shape");
    rewrite(&fused, |name, view| {
        let (name, mut shape, data) = keep(name, view)?;
        if name == "model.layers.2.feed_forward.experts.down_proj" {
            shape.swap(1, 2);
        }
        Some((name, shape, data))
    });
    fused.check("", &["model.layers.2.feed_forward.experts.down_proj", "[4, 64, 32]", "[4, 32, 64]"]);
}

#[test]
fn damaged_safetensors() {
    let copy = Copy::of("llama", "safetensors");
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let rewrite = |bytes: &[u8]| fs::write(copy.0.join("model.safetensors"), bytes).unwrap();

    rewrite(&original[..original.len() - 1]);
    copy.check("", &["model.safetensors", "tensor ", "truncated"]);
    rewrite(&original[..4]);
    copy.check("", &["model.safetensors"]);
    rewrite(&[&u64::MAX.to_le_bytes()[..], &original[8..]].concat());
    copy.check("", &["model.safetensors"]);
    let header = String::from_utf8_lossy(&original[8..]).find("\"data_offsets\":[").unwrap() + 8;
    let mut moved = original.clone();
    moved[header + 16] = b'9'; // the first digit of an offset
    rewrite(&moved);
    copy.check("", &["model.safetensors"]);
    fs::remove_file(copy.0.join("model.safetensors")).unwrap();
    copy.check("", &["model.safetensors", "it holds f16.gguf"]);
}

#[test]
fn tensors_that_do_not_fit_the_config() {
    let copy = Copy::of("llama", "tensors");
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&original).unwrap();
    let write = |tensors: Vec<(String, TensorView<'_>)>| {
        let bytes = safetensors::serialize(tensors, None).unwrap();
        fs::write(copy.0.join("model.safetensors"), bytes).unwrap();
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    let changed = |dtype: Dtype, shape: Vec<usize>| {
        let mut all = tensors.tensors();
        let found = all.iter_mut().find(|(n, _)| n == name).unwrap();
        found.1 = TensorView::new(dtype, shape, found.1.data()).unwrap();
        all
    };
    write(changed(Dtype::F32, vec![64, 96]));
    copy.check("", &[name, "[64, 96]", "[96, 64]"]);
    write(changed(Dtype::I32, vec![96, 64]));
    copy.check("", &[name, "I32"]);
    write(tensors.tensors().into_iter().filter(|(n, _)| n != name).collect());
    copy.check("", &[name, "missing"]);
    let extra = tensors.tensors().into_iter().flat_map(|(n, view)| {
        let bias = (n == name).then(|| ("model.layers.1.mlp.up_proj.bias".to_owned(), view.clone()));
        [Some((n, view)), bias].into_iter().flatten()
    });
    write(extra.collect());
    copy.check("", &["model.layers.1.mlp.up_proj.bias", "no use"]);
    copy.edit_json("config.json", |config| config["tie_word_embeddings"] = json!(true));
    write(tensors.tensors());
    let checkpoint = Checkpoint::open(&copy.0).unwrap();
    assert!(load(&checkpoint, Activations::F32, |_, _| {}).is_ok(), "a tied model's own head is set aside");
}

#[test]
fn experts_that_do_not_fit_the_config() {
    let copy = Copy::of("gpt-oss-mxfp4", "experts");
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&original).unwrap();
    let (blocks, scales) = ("mlp.experts.down_proj_blocks", "mlp.experts.down_proj_scales");
    let name = |name: &str| format!("model.layers.1.{name}");
    type Owned = (Dtype, Vec<usize>, Vec<u8>);
    let write = |edit: &dyn Fn(&str, TensorView<'_>) -> Option<Owned>| {
        let edited: Vec<_> = tensors.tensors().into_iter().filter_map(|(n, view)| Some((edit(&n, view)?, n))).collect();
        let views =
            edited.iter().map(|((dtype, shape, data), n)| (n, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        fs::write(copy.0.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    };
    let same = |view: &TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    write(&|n, view| (n != name(scales)).then(|| same(&view)));
    copy.check("", &[&name(scales), "missing"]);
    write(&|n, view| (n != name(blocks)).then(|| same(&view)));
    copy.check("", &["model.layers.1.mlp.experts.down_proj", "missing"]);
    write(&|n, view| {
        let (dtype, mut shape, data) = same(&view);
        if n == name(scales) {
            shape.swap(1, 2);
        }
        Some((dtype, shape, data))
    });
    copy.check("", &[&name(scales), "[6, 3, 64]", "[6, 64, 3]"]);
    write(&|n, view| {
        let (dtype, shape, mut data) = same(&view);
        if n == name(scales) {
            data[5] = 255;
        }
        Some((dtype, shape, data))
    });
    copy.check("", &[&name(scales), "not a number"]);
    write(&|n, view| {
        let (dtype, shape, data) = same(&view);
        Some((if n == name(blocks) { Dtype::I8 } else { dtype }, shape, data))
    });
    copy.check("", &[&name(blocks), "I8", "U8"]);
}

#[test]
fn damaged_indices() {
    let copy = Copy::of("llama3", "index");
    let index = "model.safetensors.index.json";
    let set = |name: &str, file: Value| copy.edit_json(index, |index| index["weight_map"][name] = file);
    set("model.norm.weight", json!("../llama/model.safetensors"));
    copy.check("", &["model.norm.weight", "plain file name"]);
    set("model.norm.weight", json!("/etc/hostname"));
    copy.check("", &["model.norm.weight", "plain file name"]);
    set("model.norm.weight", json!(7));
    copy.check("", &["model.norm.weight"]);
    set("model.norm.weight", json!("model-00001-of-00002.safetensors"));
    copy.check("", &["model-00001-of-00002.safetensors", "model.norm.weight"]);
    set("model.norm.weight", json!("model-00003-of-00002.safetensors"));
    copy.check("", &["model-00003-of-00002.safetensors"]);
    set("model.norm.weight", json!("model-00002-of-00002.safetensors"));
    set("model.extra.weight", json!("model-00003-of-00002.safetensors"));
    copy.check("", &["model-00003-of-00002.safetensors"]);
    copy.edit_json(index, |index| *index = json!([]));
    copy.check("", &["index.json", "weight_map"]);
}

#[test]
fn damaged_shards() {
    let (first, second) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let copy = Copy::of("llama3", "shards");
    copy.edit_bytes(second, |bytes| bytes.truncate(bytes.len() - 1));
    copy.check("", &[second, "tensor ", "truncated"]);
    copy.edit_bytes(second, |bytes| bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes()));
    copy.check("", &[second, "a header of 1099511627776 bytes"]);
    // The second shard's tensors in the first one's place are none of those that the index puts there.
    fs::copy(golden_dir().join("llama3").join(second), copy.0.join(second)).unwrap();
    fs::copy(golden_dir().join("llama3").join(second), copy.0.join(first)).unwrap();
    copy.check("", &[first, "lacks tensor", "index.json"]);

    // A tensor in both, of which the index knows nothing.
    let copy = Copy::of("llama3", "shards-twice");
    let norm = "model.norm.weight";
    let holder = fs::read(copy.0.join(second)).unwrap();
    let again = safetensors::SafeTensors::deserialize(&holder).unwrap().tensor(norm).unwrap();
    let original = fs::read(copy.0.join(first)).unwrap();
    let mut tensors = safetensors::SafeTensors::deserialize(&original).unwrap().tensors();
    tensors.push((norm.into(), again));
    fs::write(copy.0.join(first), safetensors::serialize(tensors, None).unwrap()).unwrap();
    assert!(Checkpoint::open(&copy.0).is_ok(), "the index says which is meant");
    copy.edit_json("model.safetensors.index.json", |index| {
        assert!(index["weight_map"].as_object_mut().unwrap().remove(norm).is_some());
    });
    copy.check("", &[second, norm, "which is meant"]);
}

#[test]
fn what_an_index_leaves_out_is_judged_as_the_rest_is() {
    let copy = Copy::of("llama3", "index-leaves-out");
    let norm = "model.norm.weight";
    let loads = || load(&Checkpoint::open(&copy.0).unwrap(), Activations::F32, |_, _| {}).map(drop);
    copy.edit_json("model.safetensors.index.json", |index| {
        assert!(index["weight_map"].as_object_mut().unwrap().remove(norm).is_some());
    });
    loads().unwrap();
    let shard = copy.0.join("model-00002-of-00002.safetensors");
    let original = fs::read(&shard).unwrap();
    let mut tensors = safetensors::SafeTensors::deserialize(&original).unwrap().tensors();
    let again = tensors.iter().find(|(name, _)| name == norm).expect("the second shard has it").1.clone();
    tensors.push(("model.extra.weight".into(), again));
    fs::write(shard, safetensors::serialize(tensors, None).unwrap()).unwrap();
    assert!(loads().unwrap_err().to_string().contains("model.extra.weight"));
}

#[test]
fn damaged_gguf_files() {
    let copy = Copy::of("llama", "gguf");
    for file in ["f16.gguf", "q8_0.gguf", "q4_0.gguf"] {
        copy.edit_bytes(file, |bytes| bytes.truncate(bytes.len() - 100));
        copy.check(file, &[file, "beyond the file's end"]);
    }
    let replace = |from: &str, to: &str| {
        fs::copy(golden_dir().join("llama/q8_0.gguf"), copy.0.join("edited.gguf")).unwrap();
        copy.edit_bytes("edited.gguf", |bytes| {
            let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("the text is in the file");
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        });
    };
    replace("blk.1.ffn_up.weight", "blk.1.ffn_UP.weight");
    copy.check("edited.gguf", &["blk.1.ffn_up.weight", "missing"]);
    replace("llama.block_count", "llama.block_COUNT");
    copy.check("edited.gguf", &["llama.block_count"]);
    replace("llama", "llamb");
    copy.check("edited.gguf", &["llamb"]);
    let copy = Copy::of("gpt-oss-gguf", "gguf-experts");
    copy.edit_bytes("mxfp4.gguf", |bytes| {
        let from = b"blk.1.ffn_down_exps.bias";
        let at = bytes.windows(from.len()).position(|w| w == from).expect("the text is in the file");
        bytes[at + from.len() - 4] = b'B';
    });
    copy.check("mxfp4.gguf", &["blk.1.ffn_down_exps.bias", "missing"]);
    copy.edit_bytes("q8_0.gguf", |bytes| {
        let from = b"gpt-oss.expert_used_count";
        let at = bytes.windows(from.len()).position(|w| w == from).expect("the key is in the file");
        bytes[at + from.len() - 1] = b'T';
    });
    copy.check("q8_0.gguf", &["gpt-oss.expert_used_count"]);
    fs::write(copy.0.join("edited.gguf"), b"").unwrap();
    copy.check("edited.gguf", &["edited.gguf"]);
    copy.check("absent.gguf", &["absent.gguf"]);
}
