"""The tiny models of the golden data: configs of each architecture, small enough to be committed, with prompts that go past
their windows and their original contexts."""

from transformers import (
    Gemma3Config,
    Gemma3TextConfig,
    GptOssConfig,
    Llama4Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 512


def tiny_llama():
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def tiny_llama3():
    # The original context is short, so that the wavelengths fall on every side of the scaling's thresholds.
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, rms_norm_eps=1e-5, max_position_embeddings=256,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64})


def tiny_llama_wide():
    # Rows of whole blocks of 256, and as few as that allows.
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=64, rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def tiny_mistral():
    return MistralConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, rms_norm_eps=1e-5, max_position_embeddings=128, tie_word_embeddings=True,
        sliding_window=12, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})


def tiny_gemma3():
    return Gemma3TextConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, query_pre_attn_scalar=32, rms_norm_eps=1e-6,
        max_position_embeddings=128, sliding_window=16, tie_word_embeddings=True, final_logit_softcapping=6.0,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})


def tiny_qwen3():
    # Heads wider together than the hidden size, as in the published small ones.
    return Qwen3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6, max_position_embeddings=128,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def tiny_qwen3_yarn():
    # The first prompt is longer than the original context.
    return Qwen3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, head_dim=32, rms_norm_eps=1e-6, max_position_embeddings=128,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                         "original_max_position_embeddings": 32})


def tiny_gpt_oss():
    # The first prompt is longer than the window and than the original context. A low limit, that clamps.
    return GptOssConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, num_local_experts=6, num_experts_per_tok=4, rms_norm_eps=1e-5,
        max_position_embeddings=128, sliding_window=12, swiglu_limit=2.0, tie_word_embeddings=False,
        rope_parameters={"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0,
                         "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 32})


def tiny_qwen3_moe():
    return Qwen3MoeConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=6, num_experts_per_tok=3,
        norm_topk_prob=True, rms_norm_eps=1e-6, max_position_embeddings=128, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})


def tiny_qwen3_moe_mixed():
    # Every other layer dense; the experts' shares as the softmax over all has them.
    config = tiny_qwen3_moe()
    config.decoder_sparse_step = 2
    config.norm_topk_prob = False
    return config


def tiny_llama4():
    # As Scout: all layers mixtures of experts, norms on queries and keys. The first prompt is longer than a chunk, than
    # several steps of the temperature and than the original context.
    return Llama4TextConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=32, intermediate_size_mlp=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4, rms_norm_eps=1e-5,
        max_position_embeddings=128, tie_word_embeddings=True, no_rope_layer_interval=3, attention_chunk_size=12,
        floor_scale=8, attn_scale=0.5, use_qk_norm=True,
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 1.0, "original_max_position_embeddings": 32})


def tiny_llama4_maverick():
    # As Maverick: every other layer dense, no norms on queries and keys; and as one that also sees.
    text = tiny_llama4().to_dict() | {
        "num_hidden_layers": 2, "interleave_moe_layer_step": 2, "moe_layers": None, "use_qk_norm": False,
        "no_rope_layer_interval": 2, "no_rope_layers": None, "layer_types": None, "tie_word_embeddings": False,
        "intermediate_size_mlp": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "vision_output_dim": 16, "image_size": 28, "patch_size": 14, "projector_input_dim": 16,
              "projector_output_dim": 16}
    return Llama4Config(text_config=text, vision_config=vision, tie_word_embeddings=False)


def tiny_gpt_oss_gguf():
    # What a GGUF file does not say is as the published models have it.
    config = tiny_gpt_oss()
    config.num_local_experts, config.num_experts_per_tok, config.intermediate_size = 4, 2, 64
    config.swiglu_limit = 7.0
    return config


def tiny_llama4_gguf():
    # As above; so chunks and the temperature's steps are longer than the prompts.
    config = tiny_llama4().to_dict() | {
        "num_hidden_layers": 4, "interleave_moe_layer_step": 2, "moe_layers": None, "no_rope_layer_interval": 4,
        "no_rope_layers": None, "layer_types": None, "attention_chunk_size": 8192, "floor_scale": 8192,
        "attn_scale": 0.1}
    return Llama4TextConfig(**config)


def tiny_gemma3_seeing():
    text = tiny_gemma3().to_dict() | {"num_hidden_layers": 2, "sliding_window": 12, "final_logit_softcapping": None,
                                      "layer_types": ["sliding_attention", "full_attention"]}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "image_size": 28, "patch_size": 14, "vision_use_head": False}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
