//! Made-up weights load the experts as evenly as trained ones are meant to.

use plimsoll_ops::linear::Activations;
use serde_json::json;

use super::*;
use crate::testing::{imbalance, prompts};

#[test]
fn made_up_weights_load_the_experts_evenly() {
    let json = json!({"architectures": ["Llama4ForCausalLM"], "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 512,
        "intermediate_size_mlp": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 64, "num_local_experts": 16, "attention_chunk_size": 64, "max_position_embeddings": 256,
        "dtype": "bfloat16"});
    let weights = Weights::dummy(&json, 7, Activations::F32, |_| {}).unwrap();
    let config = Config::parse(&json).unwrap();
    let model = decoder(&config, &text_part::weights(&json, &weights)).unwrap();
    let (batch, cache) = prompts(&info(&json).unwrap(), 16);
    let mut x = model.embed_tokens.forward(&batch).unwrap();
    let mut loads = Vec::new();
    for layer in &model.layers {
        let normed = x.norm(&layer.input_norm).unwrap();
        x.add(layer.attention.forward(&normed, &batch, &cache).unwrap());
        let normed = x.norm(&layer.post_attention_norm).unwrap();
        let FeedForward::Sparse(moe) = &layer.feed_forward else { panic!("a mixture of experts") };
        loads.push(moe.routes(&normed).unwrap().loads(16));
        x.add(moe.forward(&normed).unwrap());
    }
    for (layer, loads) in loads.iter().enumerate() {
        let imbalance = imbalance(loads);
        println!("layer {layer}: {imbalance:.2}");
        assert!(imbalance < 2.5, "layer {layer}: {imbalance}, {loads:?}");
    }
}
