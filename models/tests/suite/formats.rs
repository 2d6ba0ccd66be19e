//! Quantized checkpoints that must be refused, each with a message that names the culprit; and what is quantized here: at
//! load, and made up.

use std::cell::Cell;
use std::fs;
use std::path::Path;

use plimsoll_models::{dummy_bytes, find, load, load_dummy, quantized_bytes};
use plimsoll_nn::{Checkpoint, Loading, Quantize};
use plimsoll_ops::kv_write::KvDtype;
use plimsoll_ops::linear::Activations;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::driver::{Driver, Golden, golden_dir};
use crate::refusals::Copy;

const DOWN: &str = "model.layers.1.mlp.down_proj";
const CONFIG: &str = "config.json";

/// A tensor of a file: its type, its shape and its bytes.
type Owned = (Dtype, Vec<usize>, Vec<u8>);

/// Rewrites a checkpoint's tensors, by what `edit` makes of each; `None` is gone.
fn edit_tensors(copy: &Copy, original: &[u8], edit: impl Fn(&str, Owned) -> Option<Owned>, more: &[(&str, Owned)]) {
    let tensors = SafeTensors::deserialize(original).unwrap();
    let owned = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let kept = tensors.tensors().into_iter().filter_map(|(name, view)| Some((edit(&name, owned(view))?, name)));
    let all: Vec<(Owned, String)> =
        kept.chain(more.iter().map(|(name, tensor)| (tensor.clone(), (*name).to_owned()))).collect();
    let views = all.iter().map(|((dtype, shape, data), name)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("bytes for the shape"))
    });
    fs::write(copy.0.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Checks that a case is refused once the tensor `DOWN.name` is changed so, with a message that names it.
fn refused(case: &str, name: &str, edit: impl Fn(Owned) -> Option<Owned>, expected: &[&str]) {
    let copy = Copy::of(case, "formats");
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let full = format!("{DOWN}.{name}");
    let seen = Cell::new(false);
    edit_tensors(
        &copy,
        &original,
        |found, tensor| {
            if found != full {
                return Some(tensor);
            }
            seen.set(true);
            edit(tensor)
        },
        &[],
    );
    assert!(seen.get(), "{case} has {full}");
    copy.check("", expected);
}

/// Sets bytes of a tensor, from one on.
fn put(at: usize, bytes: &[u8]) -> impl Fn(Owned) -> Option<Owned> {
    move |(dtype, shape, mut data)| {
        data[at..at + bytes.len()].copy_from_slice(bytes);
        Some((dtype, shape, data))
    }
}

fn reshaped(shape: &[usize]) -> impl Fn(Owned) -> Option<Owned> {
    move |(dtype, _, data)| Some((dtype, shape.to_vec(), data))
}

fn retyped(to: Dtype) -> impl Fn(Owned) -> Option<Owned> {
    move |(_, shape, data)| Some((to, shape, data))
}

fn gone(_: Owned) -> Option<Owned> {
    None
}

#[test]
fn tensors_of_quantized_modules_that_are_wrong() {
    let nan = f32::NAN.to_le_bytes();
    let infinite = [0x00, 0x7c]; // an f16
    // The matrix is [64, 96]; blocks are of [32, 64], groups of 32.
    refused(
        "llama-fp8-block",
        "weight_scale_inv",
        put(4, &nan),
        &[DOWN, "weight_scale_inv", "NaN for row 0", "not a number"],
    );
    refused("llama-fp8-block", "weight_scale_inv", put(8, &nan), &["weight_scale_inv", "NaN for row 32"]);
    refused("llama-fp8-block", "weight_scale_inv", reshaped(&[4, 1]), &["weight_scale_inv", "[4, 1]", "[2, 2]"]);
    refused("llama-fp8-block", "weight_scale_inv", retyped(Dtype::I32), &["weight_scale_inv", "I32"]);
    refused("llama-fp8-block", "weight_scale_inv", gone, &[DOWN, "weight_scale", "missing"]);
    refused("llama-fp8-block", "weight", put(97, &[0xff]), &[DOWN, "row 1 ", "not a number"]);
    refused("llama-fp8-block", "weight", reshaped(&[96, 64]), &[DOWN, "[96, 64]", "[64, 96]"]);
    refused("llama-fp8-block", "weight", retyped(Dtype::F8_E5M2), &[DOWN, "F8_E5M2"]);
    refused("llama-fp8-tensor", "weight_scale", put(0, &f32::MAX.to_le_bytes()), &["weight_scale", "too large"]);
    refused("llama-fp8-channel", "weight_scale", reshaped(&[32, 2]), &["weight_scale", "[32, 2]", "[64, 1]"]);

    refused("llama-ct-int8", "weight_scale", gone, &[DOWN, "weight_scale", "missing"]);
    refused("llama-ct-int8", "weight", reshaped(&[96, 64]), &[DOWN, "[96, 64]"]);
    refused("llama-ct-int4", "weight_packed", retyped(Dtype::F32), &["weight_packed", "F32", "I32"]);
    refused("llama-ct-int4", "weight_packed", reshaped(&[32, 24]), &["weight_packed", "[32, 24]"]);
    refused("llama-ct-int4", "weight_packed", reshaped(&[12, 64]), &["weight_packed", "4 or 8 bits"]);
    refused("llama-ct-int4", "weight_packed", gone, &[DOWN, "missing"]);
    refused("llama-ct-int4", "weight_scale", reshaped(&[96, 2]), &["weight_scale", "[96, 2]"]);
    // 12 groups of 8 columns each are no groups.
    refused(
        "llama-ct-int4",
        "weight_scale",
        |(dtype, _, data)| Some((dtype, vec![64, 12], data.repeat(4))),
        &["weight_packed", "groups of 8"],
    );
    refused("llama-ct-int4", "weight_shape", put(0, &96i64.to_le_bytes()), &["weight_shape", "[96, 96]", "[64, 96]"]);
    refused("llama-ct-int4-zeros", "weight_zero_point", reshaped(&[4, 6]), &["weight_zero_point", "[4, 6]", "[8, 3]"]);
    for bad in [3i32, -2, i32::MAX] {
        let group = format!("group {bad}, of 3");
        refused("llama-ct-int4-zeros", "weight_g_idx", put(8, &bad.to_le_bytes()), &["weight_g_idx", &group]);
    }
    refused("llama-ct-int4-zeros", "weight_g_idx", reshaped(&[96, 1]), &["weight_g_idx", "[96, 1]"]);

    refused("llama-gptq", "qweight", reshaped(&[24, 32]), &["qweight", "[24, 32]", "64]"]);
    refused("llama-gptq", "qweight", retyped(Dtype::U32), &["qweight", "U32", "I32"]);
    refused("llama-gptq", "qzeros", gone, &[DOWN, "qzeros", "missing"]);
    refused("llama-gptq", "qzeros", reshaped(&[8, 3]), &["qzeros", "[8, 3]", "[3, 8]"]);
    refused("llama-gptq", "scales", put(6, &infinite), &[DOWN, "scales", "inf for row 3", "not a number"]);
    refused("llama-gptq", "scales", reshaped(&[64, 3]), &["scales", "[64, 3]"]);
    refused("llama-gptq", "g_idx", put(0, &3i32.to_le_bytes()), &["g_idx", "column 0", "group 3, of 3"]);
    refused("llama-gptq", "g_idx", put(0, &2i32.to_le_bytes()), &["g_idx", "not of 32 columns each"]);
    refused("llama-gptq", "g_idx", retyped(Dtype::F32), &["g_idx", "F32"]);
    refused("llama-awq", "qweight", reshaped(&[8, 96]), &["qweight", "[8, 96]", "[96, 8]"]);
    refused("llama-awq", "qzeros", reshaped(&[24]), &["qzeros", "[24]", "[3, 8]"]);
    refused("llama-awq", "scales", put(130, &infinite), &["scales", "inf for row 1", "not a number"]);
}

#[test]
fn tensors_beside_a_quantized_matrix() {
    let copy = Copy::of("llama-gptq", "formats-beside");
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let bias = |value: u8| (format!("{DOWN}.bias"), (Dtype::F16, vec![64], vec![value; 128]));
    let aside: Owned = (Dtype::F32, vec![], vec![0; 4]);
    let with = |more: &[(&str, Owned)]| edit_tensors(&copy, &original, |_, tensor| Some(tensor), more);
    let loads = || load(&Checkpoint::open(&copy.0).unwrap(), Activations::F32, |_, _| {}).is_ok();

    let (name, zeros) = bias(0);
    with(&[(&name, zeros), (&format!("{DOWN}.input_scale"), aside.clone())]);
    assert!(loads(), "a bias of nothing, and a scale of activations");
    let (name, numbers) = bias(0x3c);
    with(&[(&name, numbers)]);
    copy.check("", &[&name, "no use"]);
    with(&[(&format!("{DOWN}.weight_scale"), aside)]);
    copy.check("", &["weight_scale", "no use"]);

    let copy = Copy::of("llama-fp8-channel", "formats-beside");
    let original = fs::read(copy.0.join("model.safetensors")).unwrap();
    let zeros: Owned = (Dtype::I8, vec![64, 1], vec![0; 64]);
    edit_tensors(&copy, &original, |_, tensor| Some(tensor), &[(&format!("{DOWN}.weight_zero_point"), zeros)]);
    copy.check("", &[&format!("{DOWN}.weight_zero_point"), "no use"]);
}

/// FBGEMM's files differ from compressed-tensors' of a scale a row in their config alone.
#[test]
fn fbgemm_s_name_for_fp8_is_known() {
    let copy = Copy::of("llama-fp8-channel", "fbgemm");
    copy.edit_json(CONFIG, |config| {
        config["quantization_config"] = json!({
            "quant_method": "fbgemm_fp8",
            "activation_scale_ub": 1200.0,
            "modules_to_not_convert": ["lm_head"],
        });
    });
    let ids = &Golden::read("llama-fp8-channel").prompts("")[0].ids;
    let logits = |path: &Path| Driver::open(path, Activations::F32, 64).whole(ids);
    assert_eq!(logits(&copy.0), logits(&golden_dir().join("llama-fp8-channel")));
}

#[test]
fn configs_of_quantized_checkpoints_that_would_change_the_result() {
    let group = |value: Value| json!({"group_0": value});
    let int = |bits: u32| json!({"targets": ["Linear"], "weights": {"type": "int", "num_bits": bits}});
    let cases: &[(&str, &str, Value)] = &[
        ("llama-fp8-block", "quant_method", json!("bitsandbytes")),
        ("llama-fp8-block", "quant_method", Value::Null),
        ("llama-fp8-block", "fmt", json!("e5m2")),
        ("llama-fp8-block", "weight_block_size", json!([0, 128])),
        ("llama-fp8-block", "weight_block_size", json!([128])),
        ("llama-fp8-block", "weight_block_size", json!([1u64 << 40, 128])),
        ("llama-fp8-block", "modules_to_not_convert", json!("lm_head")),
        ("llama-ct-int4", "format", json!("nvfp4-pack-quantized")),
        ("llama-ct-int4", "transform_config", json!({"config_groups": {"R1": {}}})),
        ("llama-ct-int4", "sparsity_config", json!({"format": "sparse-24-bitmask"})),
        ("llama-ct-int4", "config_groups", json!([])),
        ("llama-ct-int4", "ignore", json!(["re:(unclosed"])),
        ("llama-ct-int4", "ignore", json!([7])),
        ("llama-gptq", "bits", json!(3)),
        ("llama-gptq", "bits", Value::Null),
        ("llama-gptq", "group_size", json!(16)),
        ("llama-gptq", "group_size", json!(0)),
        ("llama-gptq", "group_size", json!(1u64 << 40)),
        ("llama-gptq", "checkpoint_format", json!("marlin")),
        ("llama-gptq", "pack_dtype", json!("int16")),
        ("llama-gptq", "is_marlin_format", json!(true)),
        ("llama-awq", "version", json!("gemv")),
        ("llama-awq", "bits", json!(3)),
        ("llama-awq", "zero_point", json!(false)),
    ];
    let inner: &[(Value, &str)] = &[
        (group(int(3)), "num_bits"),
        (group(json!({"targets": ["Linear"]})), "weights"),
        (group(json!({"targets": ["Linear"], "weights": {"type": "float", "num_bits": 4}})), "num_bits"),
        (group(json!({"weights": {"type": "int", "num_bits": 4, "strategy": "tensor_group"}})), "strategy"),
        (
            group(json!({"weights": {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 33}})),
            "group_size",
        ),
        (group(json!({"weights": {"type": "int", "num_bits": 4, "dynamic": true}})), "dynamic"),
        (group(json!(4)), "config_groups"),
    ];
    let inner = inner.iter().map(|(value, named)| ("llama-ct-int4", "config_groups", value.clone(), *named));
    for (case, field, value, named) in cases.iter().map(|(c, f, v)| (*c, *f, v.clone(), *f)).chain(inner) {
        let copy = Copy::of(case, "formats-config");
        copy.edit_json(CONFIG, |config| config["quantization_config"][field] = value);
        copy.check("", &[named]);
    }
}

fn config(case: &str) -> Value {
    serde_json::from_slice(&fs::read(golden_dir().join(case).join(CONFIG)).unwrap()).unwrap()
}

/// The root mean square error of the logits, of that of the logits.
fn error(driver: &mut Driver, case: &str) -> f64 {
    let (mut squares, mut total) = (0.0f64, 0.0f64);
    for prompt in Golden::read(case).prompts("") {
        let logits = driver.whole(&prompt.ids);
        for (position, expected) in &prompt.rows {
            for (found, expected) in logits[*position].iter().zip(expected) {
                squares += f64::from(found - expected).powi(2);
                total += f64::from(*expected).powi(2);
            }
        }
    }
    (squares / total).sqrt()
}

/// What quantization loses is in proportion to the steps: the weights are random, which is the worst case. Where experts
/// are chosen, another choice loses more.
#[test]
fn checkpoints_are_quantized_at_load() {
    let cases = [("llama3", 1.0), ("qwen3", 1.0), ("gemma3", 1.0), ("qwen3_moe", 1.0)];
    for (case, times) in cases.into_iter().chain([("llama4", 5.0), ("gpt-oss", 5.0)]) {
        let checkpoint = Checkpoint::open(&golden_dir().join(case)).unwrap();
        let config = checkpoint.config();
        let mut bytes = dummy_bytes(config).unwrap();
        let kinds = [(Quantize::Int8, 0.04), (Quantize::Fp8, 0.16), (Quantize::Int4, 0.45), (Quantize::Mxfp4, 0.65)];
        for (quantize, most) in kinds {
            let loading = Loading { quantize: Some(quantize), ..Activations::F32.into() };
            let model = load(&checkpoint, loading, |_, _| {}).unwrap();
            let info = (find(config).unwrap().info)(config).unwrap();
            let error = error(&mut Driver::over(info, model, KvDtype::F32, |_| 256), case);
            println!("{case} as {quantize:?}: root mean square error {error:.4} of the logits'");
            assert!(error > most / 5.0 && error < (most * times).min(1.2), "{case} as {quantize:?}: {error}");
            let smaller = quantized_bytes(config, Some(quantize)).unwrap();
            assert!(smaller < bytes, "{case} as {quantize:?}: {smaller} of {bytes} bytes");
            bytes = smaller;
        }
    }
}

#[test]
fn what_is_packed_already_is_not_quantized_again() {
    for case in ["llama-gptq-act-order", "llama-fp8-block"] {
        let checkpoint = Checkpoint::open(&golden_dir().join(case)).unwrap();
        let logits = |quantize| {
            let model = load(&checkpoint, Loading { quantize, ..Activations::F32.into() }, |_, _| {}).unwrap();
            let info = (find(checkpoint.config()).unwrap().info)(checkpoint.config()).unwrap();
            Driver::over(info, model, KvDtype::F32, |_| 64).whole(&[1, 2, 3, 500])
        };
        assert_eq!(logits(None), logits(Some(Quantize::Int4)), "{case}");
    }
}

#[test]
fn dummies_have_the_form_of_their_config_or_the_one_asked_for() {
    let dense = dummy_bytes(&config("llama3")).unwrap();
    let check = |case: &str, quantize: Option<Quantize>| {
        let config = config(case);
        let counted = quantized_bytes(&config, quantize).unwrap();
        let made = Cell::new(0);
        let loading = Loading { quantize, ..Activations::F32.into() };
        let model = load_dummy(&config, 3, loading, |bytes| made.set(bytes)).unwrap();
        assert_eq!(made.get(), counted, "{case} {quantize:?}");
        let info = (find(&config).unwrap().info)(&config).unwrap();
        let logits = Driver::over(info, model, KvDtype::F32, |_| 64).whole(&[7, 100, 400]);
        let largest =
            logits.iter().flatten().fold(0f32, |most, x| if x.is_finite() { most.max(x.abs()) } else { f32::NAN });
        assert!(largest > 1e-3 && largest < 50.0, "{case} {quantize:?}: {largest}");
        counted
    };
    // Embeddings, norms and the output layer stay; of the rest, a bf16 is 2 bytes.
    let rest = dense - 2 * (512 * 64 + 5 * 64);
    let packed = |case, per_weight: f64| {
        let want = (dense - rest) as f64 + rest as f64 / 2.0 * per_weight;
        let got = check(case, None) as f64;
        assert!((got / want - 1.0).abs() < 0.02, "{case}: {got} bytes, not {want}");
    };
    for case in ["llama-fp8-tensor", "llama-fp8-channel", "llama-ct-int8", "llama-ct-int8-packed"] {
        packed(case, 1.06);
    }
    packed("llama-fp8-block", 1.07);
    packed("llama-gptq-int8", 1.0 + 6.0 / 32.0);
    for case in ["llama-ct-int4", "llama-gptq", "llama-gptq-act-order", "llama-awq"] {
        packed(case, 0.5 + 6.0 / 32.0);
    }
    // Every architecture in every format that it is published in, and in every one that is made of it.
    let mut cases = published();
    assert!(cases.len() > 40, "{cases:?}");
    for case in &cases {
        check(case, None);
    }
    cases.retain(|case| config(case).get("quantization_config").is_none());
    for case in cases {
        for quantize in [Quantize::Int8, Quantize::Int4, Quantize::Fp8, Quantize::Mxfp4] {
            check(&case, Some(quantize));
        }
    }
}

/// Golden checkpoints with a config.
fn published() -> Vec<String> {
    let entries = fs::read_dir(golden_dir()).unwrap().map(|entry| entry.unwrap());
    let named = entries.filter(|entry| entry.path().join(CONFIG).exists());
    named.map(|entry| entry.file_name().into_string().unwrap()).collect()
}
