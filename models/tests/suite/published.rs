//! Configs as the models' makers publish them, with all that they say beside what matters here.

use plimsoll_models::{dummy_bytes, find};
use plimsoll_nn::ModelInfo;
use serde_json::{Value, json};

fn info(config: &Value) -> Result<ModelInfo, String> {
    find(config).and_then(|architecture| (architecture.info)(config)).map_err(|e| e.to_string())
}

/// Layers, KV groups, KV heads and their dimension, context, vocabulary; and billions of bytes of weights.
type Facts = (usize, Vec<Option<u32>>, usize, usize, usize, usize, f64);

#[track_caller]
fn check(config: &Value, (layers, groups, kv_heads, head_dim, context, vocab, gigabytes): Facts) {
    let info = info(config).unwrap();
    assert_eq!(info.layers.len(), layers);
    assert_eq!(info.groups, groups);
    assert!(info.layers.iter().all(|layer| (layer.kv_heads, layer.head_dim) == (kv_heads, head_dim)));
    assert_eq!((info.max_position_embeddings, info.vocab_size), (context, vocab));
    let found = dummy_bytes(config).unwrap() as f64 / 1e9;
    assert!((found / gigabytes - 1.0).abs() < 0.01, "{found} GB");
}

#[test]
fn llama_and_its_kin() {
    let smollm2 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536, "is_llama_config": true, "max_position_embeddings": 8192, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
        "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": false, "rope_scaling": null,
        "rope_theta": 100000, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
        "transformers_version": "4.42.3", "use_cache": true, "vocab_size": 49152});
    check(&smollm2, (30, vec![None], 3, 64, 8192, 49152, 0.269));
    let llama_3 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": 128009, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": null, "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0.dev0", "use_cache": true, "vocab_size": 128256});
    check(&llama_3, (32, vec![None], 8, 128, 8192, 128256, 16.06));
    let llama_3_2 = json!({
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "head_dim": 128, "hidden_act": "silu", "hidden_size": 3072,
        "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 24, "num_hidden_layers": 28, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256});
    check(&llama_3_2, (28, vec![None], 8, 128, 131072, 128256, 6.43));
    let mistral_0_1 = json!({
        "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": true, "vocab_size": 32000});
    check(&mistral_0_1, (32, vec![Some(4096)], 8, 128, 32768, 32000, 14.48));
}

#[test]
fn gemma3() {
    let of_27b = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
        "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": {
            "head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "model_type": "gemma3_text",
            "num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024},
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
                          "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
                          "patch_size": 14, "vision_use_head": false}});
    check(&of_27b, (62, vec![None, Some(1024)], 16, 128, 131072, 262208, 54.0));
    let mut without = of_27b.clone();
    without["text_config"] = Value::Null;
    assert!(info(&without).unwrap_err().contains("text_config"));
    let mut softcapped = of_27b;
    softcapped["text_config"]["attn_logit_softcapping"] = json!(50.0);
    assert!(info(&softcapped).unwrap_err().contains("text_config.attn_logit_softcapping"));
}

#[test]
fn llama4() {
    let scout = json!({
        "architectures": ["Llama4ForConditionalGeneration"], "boi_token_index": 200080, "eoi_token_index": 200081,
        "image_token_index": 200092, "model_type": "llama4",
        "text_config": {
            "_attn_implementation_autoset": true, "attention_bias": false, "attention_chunk_size": 8192,
            "attention_dropout": 0.0, "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008],
            "for_llm_compressor": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "initializer_range": 0.02, "interleave_moe_layer_step": 1, "intermediate_size": 8192,
            "intermediate_size_mlp": 16384, "max_position_embeddings": 10485760, "model_type": "llama4_text",
            "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
            "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": false, "pad_token_id": 200018,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                             "original_max_position_embeddings": 8192, "rope_type": "llama3"},
            "rope_theta": 500000.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
            "torch_dtype": "bfloat16", "use_cache": true, "use_qk_norm": true, "vocab_size": 202048},
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0.dev0",
        "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model", "num_hidden_layers": 34}});
    check(&scout, (48, vec![None, Some(8192)], 8, 128, 10_485_760, 202_048, 215.54));
    let full = info(&scout).unwrap().layers.iter().filter(|layer| layer.group == 0).count();
    assert_eq!(full, 12, "every fourth layer");
    let text = |field: &str, value: Value| {
        let mut changed = scout.clone();
        changed["text_config"][field] = value;
        info(&changed)
    };
    let number_for_a_flag = text("attn_temperature_tuning", json!(4));
    assert_eq!(number_for_a_flag, info(&scout));
    for (field, value) in [
        ("attention_bias", json!(true)),
        ("hidden_act", json!("gelu")),
        ("attention_chunk_size", Value::Null),
        ("num_local_experts", Value::Null),
        ("num_experts_per_tok", json!(17)),
        ("no_rope_layers", json!([1, 1, 0])),
        ("no_rope_layers", json!(vec!["yes"; 48])),
        ("layer_types", json!(vec!["sliding_attention"; 48])),
        ("attn_temperature_tuning", json!("on")),
        ("floor_scale", json!(-1)),
        ("moe_layers", json!("all")),
    ] {
        let problem = text(field, value.clone()).unwrap_err();
        assert!(problem.contains(&format!("text_config.{field}")), "{field} {value}: {problem}");
    }
}

#[test]
fn qwen3_moe() {
    let qwen3 = json!({
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 262144,
        "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
        "norm_topk_prob": true, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
        "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": false, "rms_norm_eps": 1e-06,
        "rope_scaling": null, "rope_theta": 10000000, "router_aux_loss_coef": 0.001, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936});
    check(&qwen3, (48, vec![None], 4, 128, 262_144, 151_936, 61.06));
    let with = |field: &str, value: Value| {
        let mut changed = qwen3.clone();
        changed[field] = value;
        changed
    };
    // Dense layers: by name, and every other one.
    let expert = 3 * 2048 * 768 * 2;
    let less = |experts: usize| 61.06 - (experts * 128 * expert) as f64 / 1e9;
    let dense = (3 * 2048 * 6144 * 2) as f64 / 1e9;
    for (field, value, layers) in [("mlp_only_layers", json!([0, 7]), 2), ("decoder_sparse_step", json!(2), 24)] {
        let found = dummy_bytes(&with(field, value)).unwrap() as f64 / 1e9;
        let expected = less(layers) + layers as f64 * dense;
        assert!((found / expected - 1.0).abs() < 0.01, "{field}: {found} GB");
    }
    for (field, value) in [
        ("attention_bias", json!(true)),
        ("use_sliding_window", json!(true)),
        ("hidden_act", json!("gelu")),
        ("mlp_only_layers", json!([48])),
        ("decoder_sparse_step", json!(0)),
        ("num_experts_per_tok", json!(129)),
        ("norm_topk_prob", json!("yes")),
        ("moe_intermediate_size", Value::Null),
    ] {
        let problem = info(&with(field, value.clone())).unwrap_err();
        assert!(problem.contains(field), "{field} {value}: {problem}");
    }
}

#[test]
fn gpt_oss() {
    let of_20b = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0,
        "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
        "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
        "layer_types": (0..24).map(|i| ["sliding_attention", "full_attention"][i % 2]).collect::<Vec<_>>(),
        "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32,
        "output_router_logits": false, "pad_token_id": 199999,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router",
                                       "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                         "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
        "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true,
        "vocab_size": 201088});
    check(&of_20b, (24, vec![None, Some(128)], 8, 64, 131_072, 201_088, 13.76));
}
