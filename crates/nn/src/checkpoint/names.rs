//! Hugging Face's tensor names in GGUF's terms, one table an architecture.

/// What distinguishes one GGUF architecture's tensors.
pub(super) struct GgufArch {
    /// `general.architecture`.
    pub(super) name: &'static str,
    /// Modules of a decoder layer: Hugging Face's name and GGUF's.
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

/// Modules outside the layers.
const TOP: &[(&str, &str)] =
    &[("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

impl GgufArch {
    pub(super) fn find(name: &str) -> Option<&'static GgufArch> {
        [&LLAMA, &GEMMA3, &QWEN3].into_iter().find(|arch| arch.name == name)
    }

    /// GGUF's name of the tensor that Hugging Face calls `name`.
    pub(super) fn gguf_name(&self, name: &str) -> Option<String> {
        let (module, parameter) = name.rsplit_once('.')?;
        if let Some(inside) = module.strip_prefix("model.layers.") {
            let (layer, module) = inside.split_once('.')?;
            return Some(format!("blk.{layer}.{}.{parameter}", lookup(self.layer, module)?));
        }
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
        let llama = GgufArch::find("llama").unwrap();
        let norm = llama.gguf_name("model.layers.3.post_attention_layernorm.weight");
        assert_eq!(norm.as_deref(), Some("blk.3.ffn_norm.weight"));
    }
}
