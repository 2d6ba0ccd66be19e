//! Where the experts' router sends tokens: where transformers' does; and with made-up weights to all experts evenly, as
//! trained ones are meant to.

use plimsoll_ops::linear::Activations;
use serde_json::json;

use super::*;
use crate::testing::{Mixture, RoutedLayer, check_balance, check_routes};

impl RoutedLayer for Layer {
    fn mixture(&self) -> Option<Mixture<'_>> {
        let Self { input_norm, attention, post_attention_norm, moe } = self;
        Some(Mixture { input_norm, attention, post_attention_norm, moe })
    }
}

fn decode(config: &Value, weights: &Weights<'_>) -> Decoder<Layer> {
    decoder(&Config::parse(config).unwrap(), weights).unwrap()
}

#[test]
fn routers_decide_as_the_references_do() {
    assert!(check_routes(&["GptOssForCausalLM"], decode) >= 12);
}

#[test]
fn made_up_weights_load_the_experts_evenly() {
    let json = json!({"architectures": ["GptOssForCausalLM"], "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "num_local_experts": 32, "num_experts_per_tok": 4, "max_position_embeddings": 256, "sliding_window": 64,
        "rope_parameters": {"rope_type": "default", "rope_theta": 150_000.0}, "dtype": "bfloat16"});
    let weights = Weights::dummy(&json, 7, Activations::F32, |_| {}).unwrap();
    check_balance(&json, &decode(&json, &weights), 32);
}
