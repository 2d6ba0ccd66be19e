//! Where the experts' router sends tokens: where transformers' does; and with made-up weights to all experts evenly, as
//! trained ones are meant to.

use plimsoll_ops::linear::Activations;
use serde_json::json;

use super::*;
use crate::testing::{Mixture, RoutedLayer, check_balance, check_routes};

impl RoutedLayer for Layer {
    fn mixture(&self) -> Option<Mixture<'_>> {
        let Self { input_norm, attention, post_attention_norm, feed_forward } = self;
        match feed_forward {
            FeedForward::Sparse(moe) => Some(Mixture { input_norm, attention, post_attention_norm, moe }),
            FeedForward::Dense(_) => None,
        }
    }
}

fn decode(config: &Value, weights: &Weights<'_>) -> Decoder<Layer> {
    decoder(&Config::parse(config).unwrap(), weights).unwrap()
}

#[test]
fn routers_decide_as_the_references_do() {
    assert!(check_routes(&["Qwen3MoeForCausalLM"], decode) >= 10);
}

#[test]
fn made_up_weights_load_the_experts_evenly() {
    let json = json!({"architectures": ["Qwen3MoeForCausalLM"], "vocab_size": 4096, "hidden_size": 1024, "intermediate_size": 512,
        "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
        "moe_intermediate_size": 64, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": true,
        "max_position_embeddings": 256, "dtype": "bfloat16"});
    let weights = Weights::dummy(&json, 7, Activations::F32, |_| {}).unwrap();
    check_balance(&json, &decode(&json, &weights), 64);
}
