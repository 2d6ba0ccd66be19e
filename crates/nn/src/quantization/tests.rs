//! Which modules a config quantizes, and to what.

use serde_json::{Value, json};

use super::*;

fn parse(quantization: Value) -> Quantization {
    Quantization::parse(&json!({"quantization_config": quantization})).unwrap()
}

fn grouped(codes: Codes, group: usize) -> Option<RowFormat> {
    Some(Grouped { codes, group }.into())
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn a_config_without_it_is_dense() {
    for config in [json!({}), json!({"quantization_config": null})] {
        let quantization = Quantization::parse(&config).unwrap();
        assert_eq!((quantization.dummy_format(Q, 64), quantization.to_string()), (None, "dense".into()));
    }
}

#[test]
fn methods_have_their_forms() {
    let fp8 = parse(json!({"quant_method": "fp8", "weight_block_size": [128, 64]}));
    assert_eq!((fp8.block(Q), fp8.dummy_format(Q, 100)), (Some([128, 64]), grouped(Codes::E4M3, 64)));
    assert_eq!(fp8.to_string(), "fp8 (blocks of 128 x 64)");
    let gptq = |bits: u32, group: i32| parse(json!({"quant_method": "gptq", "bits": bits, "group_size": group}));
    assert_eq!(gptq(4, 128).dummy_format(Q, 256), grouped(Codes::Int4, 128));
    assert_eq!(gptq(8, -1).dummy_format(Q, 256), grouped(Codes::Int8, 256));
    assert_eq!(gptq(8, -1).dummy_format(Q, 250), None, "no multiple of 32");
    assert_eq!(gptq(4, -1).to_string(), "gptq (int4, rows)");
    let older = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": true});
    assert_eq!(parse(older).dummy_format(Q, 128), grouped(Codes::Int4, 64));
    let mxfp4 = parse(json!({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}));
    assert_eq!(mxfp4.dummy_format(Q, 64), None);
    assert_eq!(mxfp4.dummy_format("model.layers.0.mlp.experts.3.up_proj", 64), Some(GgmlType::MXFP4.into()));
}

#[test]
fn what_a_config_leaves_out_is_dense() {
    let kept = |field: &str, method: &str, list: Value| {
        let mut config = json!({"quant_method": method, "bits": 4, "group_size": 32});
        config["config_groups"] = json!({"g": {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 8}}});
        config[field] = list;
        let quantization = parse(config);
        let names = ["q_proj", "mlp.down_proj", "mlp.experts.1.down_proj", "visual.q_proj"];
        names.map(|name| quantization.dummy_format(&format!("model.layers.12.{name}"), 64).is_none())
    };
    assert_eq!(kept("ignore", "compressed-tensors", json!([])), [false; 4]);
    assert_eq!(kept("ignore", "compressed-tensors", json!(["re:.*down_proj"])), [false, true, true, false]);
    assert_eq!(kept("ignore", "compressed-tensors", json!(["re:down_proj"])), [false; 4], "matches from the start on");
    assert_eq!(kept("ignore", "compressed-tensors", json!(["model.layers.12.q_proj"])), [true, false, false, false]);
    assert_eq!(kept("ignore", "compressed-tensors", json!(["model.layers.1"])), [false; 4], "parts are whole");
    assert_eq!(kept("modules_to_not_convert", "awq", json!(["visual"])), [false, false, false, true]);
    assert_eq!(kept("modules_to_not_convert", "gptq", json!(["mlp.experts"])), [false, false, true, false]);
    assert_eq!(kept("ignored_layers", "fp8", json!(["model.layers.*.mlp"])), [false, true, true, false]);
    let awq = parse(json!({"quant_method": "awq", "bits": 4, "group_size": 32}));
    for module in ["lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "model.layers.3.mlp.router"] {
        assert_eq!(awq.dummy_format(module, 64), None, "{module}");
    }
    assert!(awq.dummy_format("model.layers.0.mlp.gate_proj", 64).is_some());
}

#[test]
fn groups_of_modules_have_their_own_arguments() {
    let weights =
        |bits: u32, group: u32| json!({"type": "int", "num_bits": bits, "strategy": "group", "group_size": group});
    let config = json!({"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
        "all": {"targets": ["Linear"], "weights": weights(4, 64), "format": "pack-quantized"},
        "some": {"targets": ["re:.*down_proj"], "weights": weights(8, 32), "format": "pack-quantized"},
        "blocks": {"targets": ["re:.*o_proj"], "format": "float-quantized",
            "weights": {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}},
    }});
    let quantization = parse(config);
    assert_eq!(quantization.dummy_format(Q, 128), grouped(Codes::Int4, 64));
    assert_eq!(quantization.dummy_format("model.layers.0.mlp.down_proj", 128), grouped(Codes::Int8, 32));
    let output = "model.layers.0.self_attn.o_proj";
    assert_eq!(quantization.dummy_format(output, 300), grouped(Codes::E4M3, 128));
    assert_eq!((quantization.block(output), quantization.block(Q)), (Some([128, 128]), None));
    let shown = quantization.to_string();
    assert!(shown.contains("int4, groups of 64; int8, groups of 32; fp8, blocks of 128 x 128"), "{shown}");
}

#[test]
fn whose_publisher_rounds_activations_is_known() {
    let fp8 = |field: Value| {
        let mut config = json!({"quant_method": "fp8", "ignored_layers": ["lm_head"]});
        config["activation_scheme"] = field;
        parse(config)
    };
    assert!(fp8(json!("dynamic")).rounds_activations(Q) && fp8(json!("static")).rounds_activations(Q));
    assert!(!fp8(Value::Null).rounds_activations(Q) && !fp8(json!("dynamic")).rounds_activations("lm_head"));
    let compressed = |activations: Value| {
        let weights = json!({"type": "float", "num_bits": 8, "strategy": "channel"});
        let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": activations});
        parse(json!({"quant_method": "compressed-tensors", "config_groups": {"g": group}, "ignore": ["lm_head"]}))
    };
    let dynamic = compressed(json!({"type": "float", "num_bits": 8, "strategy": "token", "dynamic": true}));
    assert!(dynamic.rounds_activations(Q) && !dynamic.rounds_activations("lm_head"));
    for other in [Value::Null, json!({"type": "int", "num_bits": 8})] {
        assert!(!compressed(other).rounds_activations(Q));
    }
    assert!(!parse(json!({"quant_method": "gptq", "bits": 4, "group_size": 128})).rounds_activations(Q));
}

#[test]
fn an_older_name_of_the_field_is_read() {
    let groups = json!({"g": {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 8}}});
    let of = |config: Value| Quantization::parse(&config).map_err(|e| e.to_string());
    let older = json!({"format": "float-quantized", "config_groups": groups, "ignore": ["lm_head"]});
    let parsed = of(json!({"compression_config": older})).unwrap();
    assert_eq!(parsed.dummy_format(Q, 64), grouped(Codes::E4M3, 64));
    let both = of(json!({"compression_config": older, "quantization_config": {"quant_method": "fp8"}})).unwrap();
    assert!(matches!(both.method(), Method::Fp8(_)));
    let error = of(json!({"compression_config": {"quant_method": "sparseml"}})).unwrap_err();
    assert!(error.contains("compression_config.quant_method") && error.contains("sparseml"), "{error}");
}
