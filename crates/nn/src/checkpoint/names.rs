//! Hugging Face's tensor names in GGUF's terms, one table an architecture.

/// What distinguishes one GGUF architecture's tensors.
pub(super) struct GgufArch {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// Modules of a decoder layer, or whole names of their tensors: Hugging Face's name and GGUF's. A stack of the
    /// matrices of all experts, which Hugging Face's layouts lack, is called as one expert's is, less its number.
    layer: &'static [(&'static str, &'static str)],
    /// The rows of `attn_q` and `attn_k` are in interleaved-pair order, to be put back to rotate-half order.
    pub(super) interleaved_rope: bool,
}

const LLAMA: GgufArch = GgufArch {
    name: "llama",
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ],
    interleaved_rope: true,
};

const GEMMA3: GgufArch = GgufArch {
    name: "gemma3",
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    interleaved_rope: false,
};

const QWEN3: GgufArch = GgufArch {
    name: "qwen3",
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ],
    interleaved_rope: false,
};

const QWEN3MOE: GgufArch = GgufArch {
    name: "qwen3moe",
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
    ],
    interleaved_rope: false,
};

const GPT_OSS: GgufArch = GgufArch {
    name: "gpt-oss",
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.sinks", "attn_sinks.weight"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("mlp.router", "ffn_gate_inp"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
    ],
    interleaved_rope: false,
};

const LLAMA4: GgufArch = GgufArch {
    name: "llama4",
    layer: &[
        ("input_layernorm", "attn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("post_attention_layernorm", "ffn_norm"),
        ("feed_forward.gate_proj", "ffn_gate"),
        ("feed_forward.up_proj", "ffn_up"),
        ("feed_forward.down_proj", "ffn_down"),
        ("feed_forward.router", "ffn_gate_inp"),
        ("feed_forward.experts.gate_proj", "ffn_gate_exps"),
        ("feed_forward.experts.up_proj", "ffn_up_exps"),
        ("feed_forward.experts.down_proj", "ffn_down_exps"),
        ("feed_forward.shared_expert.gate_proj", "ffn_gate_shexp"),
        ("feed_forward.shared_expert.up_proj", "ffn_up_shexp"),
        ("feed_forward.shared_expert.down_proj", "ffn_down_shexp"),
    ],
    // Paired as the published weights are.
    interleaved_rope: false,
};

/// Modules outside the layers.
const TOP: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

impl GgufArch {
    pub(super) fn find(name: &str) -> Option<&'static GgufArch> {
        [&LLAMA, &GEMMA3, &QWEN3, &QWEN3MOE, &GPT_OSS, &LLAMA4].into_iter().find(|arch| arch.name == name)
    }

    /// GGUF's name of the tensor that Hugging Face calls `name`.
    pub(super) fn gguf_name(&self, name: &str) -> Option<String> {
        if let Some(inside) = name.strip_prefix("model.layers.") {
            let (layer, name) = inside.split_once('.')?;
            if let Some(whole) = lookup(self.layer, name) {
                return Some(format!("blk.{layer}.{whole}"));
            }
            let (module, parameter) = name.rsplit_once('.')?;
            return Some(format!("blk.{layer}.{}.{parameter}", lookup(self.layer, module)?));
        }
        let (module, parameter) = name.rsplit_once('.')?;
        Some(format!("{}.{parameter}", lookup(TOP, module)?))
    }
}

fn lookup(table: &[(&'static str, &'static str)], module: &str) -> Option<&'static str> {
    table.iter().find(|(hugging_face, _)| *hugging_face == module).map(|(_, gguf)| *gguf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_by_layer_and_module() {
        let gemma3 = GgufArch::find("gemma3").unwrap();
        let cases = [
            ("model.embed_tokens.weight", Some("token_embd.weight")),
            ("model.layers.17.post_attention_layernorm.weight", Some("blk.17.post_attention_norm.weight")),
            ("model.layers.0.self_attn.q_proj.bias", Some("blk.0.attn_q.bias")),
            ("model.layers.0.self_attn.sinks", None),
            ("weight", None),
        ];
        for (hugging_face, gguf) in cases {
            assert_eq!(gemma3.gguf_name(hugging_face).as_deref(), gguf, "{hugging_face}");
        }
        let gpt_oss = GgufArch::find("gpt-oss").unwrap();
        let cases = [
            ("model.layers.9.self_attn.sinks", Some("blk.9.attn_sinks.weight")),
            ("model.layers.9.mlp.router.bias", Some("blk.9.ffn_gate_inp.bias")),
            ("model.layers.9.mlp.experts.gate_proj.bias", Some("blk.9.ffn_gate_exps.bias")),
            ("model.layers.9.mlp.experts.0.gate_proj.bias", None),
        ];
        for (hugging_face, gguf) in cases {
            assert_eq!(gpt_oss.gguf_name(hugging_face).as_deref(), gguf, "{hugging_face}");
        }
        let llama = GgufArch::find("llama").unwrap();
        let norm = llama.gguf_name("model.layers.3.post_attention_layernorm.weight");
        assert_eq!(norm.as_deref(), Some("blk.3.ffn_norm.weight"));
    }
}
