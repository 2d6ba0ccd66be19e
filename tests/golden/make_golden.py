#!/usr/bin/env python3
"""Makes the golden data of this folder. Needed only to change it: the tests read what is committed.

    pip install torch transformers safetensors gguf
    python tests/golden/make_golden.py tiny [CASE ...]
    python tests/golden/make_golden.py yarn
    python tests/golden/make_golden.py real smollm2-135m-instruct /path/to/SmolLM2-135M-Instruct.Q4_1.gguf
    python tests/golden/make_golden.py real gemma-3-270m /path/to/gemma-3-270m-q4_k_m.gguf

`tiny` writes one folder a case (all, or those named after it): a small random checkpoint (config.json and safetensors),
GGUF files of the same weights, and `golden.safetensors` with transformers' float32 logits. The references of quantized files are computed
from the dequantized weights. Names inside golden.safetensors, for prompt number P:

    ids.P            int32 [tokens]
    positions.P      int32 [rows]           the positions whose logits are kept
    logits.P         float32 [rows, vocab]  of the safetensors checkpoint
    routes.L.P       float32 [tokens, experts]  of layer L, a mixture: what each expert weighs, 0 where it is not chosen
    FILE.logits.P, FILE.routes.L.P          the same of FILE.gguf

`yarn` writes yarn.json: YaRN's frequencies and attention factor for some RoPE parameters.

`real` dequantizes a published GGUF file into a transformers model and writes greedy continuations, with the gap
between the two likeliest logits of every step, to real/NAME.json.
"""

import hashlib
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tiny_models import (
    VOCAB,
    tiny_gemma3,
    tiny_gemma3_seeing,
    tiny_gpt_oss,
    tiny_gpt_oss_gguf,
    tiny_llama,
    tiny_llama3,
    tiny_llama_wide,
    tiny_llama4,
    tiny_llama4_gguf,
    tiny_llama4_maverick,
    tiny_mistral,
    tiny_qwen3,
    tiny_qwen3_moe,
    tiny_qwen3_moe_mixed,
    tiny_qwen3_yarn,
)

HERE = Path(__file__).parent
PROMPT_LENGTHS = [45, 9]
KEPT_POSITIONS = [0, 1, 8, 15, 16, 17, 31, 32, 44]


# ---------------------------------------------------------------- tiny models

# case, config, model class, dtype of the safetensors (or None, for
# GGUF files alone), GGUF files as {stem: quantization of the matrices; or of the experts, if it is MXFP4; or MIXED}
TINY = [
    ("llama", tiny_llama, LlamaForCausalLM, torch.float32, {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}),
    ("llama3", tiny_llama3, LlamaForCausalLM, torch.bfloat16, {"q8_0": "Q8_0"}),
    ("llama-gguf-mixed", tiny_llama_wide, LlamaForCausalLM, None, {"mixed": "MIXED"}),
    ("mistral", tiny_mistral, MistralForCausalLM, torch.float16, {}),
    ("gemma3", tiny_gemma3, Gemma3ForCausalLM, torch.bfloat16, {"q8_0": "Q8_0", "q4_0": "Q4_0"}),
    ("gemma3-seeing", tiny_gemma3_seeing, Gemma3ForConditionalGeneration, torch.bfloat16, {}),
    ("qwen3", tiny_qwen3, Qwen3ForCausalLM, torch.bfloat16, {"q8_0": "Q8_0"}),
    ("qwen3-yarn", tiny_qwen3_yarn, Qwen3ForCausalLM, torch.float32, {"q8_0": "Q8_0"}),
    ("gpt-oss", tiny_gpt_oss, GptOssForCausalLM, torch.bfloat16, {}),
    ("gpt-oss-mxfp4", tiny_gpt_oss, GptOssForCausalLM, torch.bfloat16, {}),
    ("gpt-oss-gguf", tiny_gpt_oss_gguf, GptOssForCausalLM, None, {"mxfp4": "MXFP4", "q8_0": "Q8_0"}),
    ("qwen3_moe", tiny_qwen3_moe, Qwen3MoeForCausalLM, torch.bfloat16, {"q8_0": "Q8_0"}),
    ("qwen3_moe-mixed", tiny_qwen3_moe_mixed, Qwen3MoeForCausalLM, torch.bfloat16, {}),
    ("llama4", tiny_llama4, Llama4ForCausalLM, torch.bfloat16, {}),
    ("llama4-gguf", tiny_llama4_gguf, Llama4ForCausalLM, None, {"q8_0": "Q8_0"}),
    ("llama4-maverick", tiny_llama4_maverick, Llama4ForConditionalGeneration, torch.bfloat16, {}),
]


def randomize(model, seed, dtype):
    """Weights large enough that the logits are not flat, norms that are not one; all exact in `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                centre = 0.0 if isinstance(model, (Gemma3ForCausalLM, Gemma3ForConditionalGeneration)) else 1.0
                value = centre + 0.3 * noise
            elif name.endswith("sinks"):
                value = 2.0 * noise
            else:
                value = 0.2 * noise
            parameter.copy_(value.to(dtype).to(torch.float32))


def to_mxfp4(model, seed):
    """Experts' matrices of random blocks and scales as OpenAI publishes them; the model gets what they stand for."""
    generator = torch.Generator().manual_seed(seed + 1)
    packed = {}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                experts, cols, rows = parameter.shape
                blocks = torch.randint(0, 256, (experts, rows, cols // 32, 16), generator=generator, dtype=torch.uint8)
                scales = torch.randint(121, 125, blocks.shape[:3], generator=generator, dtype=torch.uint8)
                parameter.copy_(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32))
                packed |= {name: None, f"{name}_blocks": blocks, f"{name}_scales": scales}
    return packed


def published(model):
    """The model's tensors by the names under which they are published; of tied ones, one."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def save_checkpoint(model, folder, dtype, shards, packed):
    """`packed`: what some tensors are stored as instead; None is not at all."""
    tensors = {n: t.to(dtype).contiguous() for n, t in published(model).items()}
    tensors = {n: t for n, t in (tensors | packed).items() if t is not None}
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    if packed:
        config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for index, names in enumerate(np.array_split(sorted(tensors), shards)):
        shard = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file({str(n): tensors[str(n)] for n in names}, folder / shard)
        weight_map |= {str(n): shard for n in names}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def weights_of_experts(output):
    """[tokens, experts] of what a router gives: that, or the chosen ones' weights and numbers."""
    if len(output) == 2:
        return output[0]
    logits, weights, chosen = output
    return torch.zeros_like(logits).scatter_(1, chosen, weights)


def run(model, ids):
    """The logits of each token; and by layer, of those that are mixtures, what weighs each token's experts."""
    routes = {}

    def record(layer):
        def hook(_router, _inputs, output):
            routes[layer] = weights_of_experts(output).float().contiguous()
        return hook

    routers = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("Router")]
    layer_of = re.compile(r"layers\.(\d+)\.")
    hooks = [module.register_forward_hook(record(int(layer_of.search(name)[1]))) for name, module in routers]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    for hook in hooks:
        hook.remove()
    return logits, routes


def random_prompts(seed):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, VOCAB, length).tolist() for length in PROMPT_LENGTHS]


def recorded(model, prompts, prefix=""):
    """The tensors of golden.safetensors that tell of a model."""
    golden = {}
    for number, ids in enumerate(prompts):
        kept = [position for position in KEPT_POSITIONS if position < len(ids)]
        logits, routes = run(model, ids)
        golden[f"ids.{number}"] = torch.tensor(ids, dtype=torch.int32)
        golden[f"positions.{number}"] = torch.tensor(kept, dtype=torch.int32)
        golden[f"{prefix}logits.{number}"] = logits[kept].contiguous()
        golden |= {f"{prefix}routes.{layer}.{number}": weights for layer, weights in routes.items()}
    return golden


def make_tiny(case, config, model_class, dtype, files):
    folder = HERE / case
    folder.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(folder.name.encode()).digest()[:4], "little")
    config = config()
    config._attn_implementation = "eager"
    model = model_class(config).eval().float()
    randomize(model, seed, dtype or torch.float32)
    packed = to_mxfp4(model, seed) if case.endswith("mxfp4") else {}
    if dtype is not None:
        save_checkpoint(model, folder, dtype, shards=2 if case == "llama3" else 1, packed=packed)
    prompts = random_prompts(seed)
    golden = recorded(model, prompts) if dtype is not None else {}
    for stem, quantization in files.items():
        path = folder / f"{stem}.gguf"
        write_gguf(model, path, quantization)
        golden |= recorded(load_gguf(path, config, model_class), prompts, f"{stem}.")
    save_file(golden, folder / "golden.safetensors")
    spread = next(logits for name, logits in golden.items() if name.endswith("logits.0")).std().item()
    print(f"{case}: {sum(p.numel() for p in model.parameters())} parameters, logits' deviation {spread:.2f}")


# ---------------------------------------------------------------- GGUF

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "feed_forward.gate_proj": "ffn_gate", "feed_forward.up_proj": "ffn_up", "feed_forward.down_proj": "ffn_down",
    "feed_forward.shared_expert.gate_proj": "ffn_gate_shexp", "feed_forward.shared_expert.up_proj": "ffn_up_shexp",
    "feed_forward.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp", "feed_forward.router": "ffn_gate_inp",
    "self_attn.sinks": "attn_sinks",
}
NORM_NAMES = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
               "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
               "post_feedforward_layernorm": "post_ffw_norm"},
    "qwen3": {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
              "post_attention_layernorm": "ffn_norm"},
    "gpt-oss": {"post_attention_layernorm": "post_attention_norm"},
    "llama4": {"post_attention_layernorm": "ffn_norm"},
}
NORM_NAMES["qwen3moe"] = NORM_NAMES["qwen3"]
ARCHES = {Gemma3ForCausalLM: "gemma3", Qwen3ForCausalLM: "qwen3", LlamaForCausalLM: "llama",
          GptOssForCausalLM: "gpt-oss", Qwen3MoeForCausalLM: "qwen3moe", Llama4ForCausalLM: "llama4"}
TOP_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}


def gguf_name(arch, name):
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    kind = "bias" if rest.endswith(".bias") else "weight"
    module = rest.removesuffix(f".{kind}")
    return f"blk.{layer}.{(LAYER_NAMES | NORM_NAMES[arch])[module]}.{kind}"


def expert_names(name):
    """GGUF's names of a tensor of all experts: of the gate's and up's parts, or of down's."""
    kind = "bias" if name.endswith("_bias") else "weight"
    parts = ["gate", "up"] if "gate_up" in name else ["down"]
    return [f"blk.{name.split('.')[2]}.ffn_{part}_exps.{kind}" for part in parts]


def split_experts(arch, name, data):
    """A tensor of all experts as GGUF has it: out_features before in_features, gate and up apart."""
    if data.ndim == 3 and arch != "qwen3moe":
        data = data.swapaxes(1, 2)
    if "gate_up" not in name:
        return [data]
    half = data.shape[1] // 2
    return [data[:, ::2], data[:, 1::2]] if arch == "gpt-oss" else [data[:, :half], data[:, half:]]


def join_experts(arch, name, parts):
    """The inverse."""
    data = parts[0]
    if len(parts) == 2:
        data = (np.stack(parts, axis=2).reshape(parts[0].shape[0], -1, *parts[0].shape[2:]) if arch == "gpt-oss"
                else np.concatenate(parts, axis=1))
    return data.swapaxes(1, 2) if data.ndim == 3 and arch != "qwen3moe" else data


def permute(rows, heads):
    """Rotate-half row order (Hugging Face) to interleaved pairs (GGUF's llama)."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def unpermute(rows, heads):
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def q_k_heads(arch, name, config):
    if arch == "llama" and name.endswith("q_proj.weight"):
        return config.num_attention_heads
    if arch == "llama" and name.endswith("k_proj.weight"):
        return config.num_key_value_heads
    return None


def llama3_factors(config):
    rope = config.rope_parameters
    dim = config.head_dim
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, dim, 2) / dim)
    low = rope["original_max_position_embeddings"] / rope["low_freq_factor"]
    high = rope["original_max_position_embeddings"] / rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] / wavelengths - rope["low_freq_factor"]) / max(
        rope["high_freq_factor"] - rope["low_freq_factor"], 1e-9)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    factors = np.where(wavelengths < high, 1.0, np.where(wavelengths > low, rope["factor"], between))
    return factors.astype(np.float32)


# Of MIXED, one after the other.
MIXED = ["Q4_K", "Q2_K", "Q3_K", "Q5_K", "Q6_K", "Q4_1", "Q5_0", "Q5_1"]
# Of blocks that gguf cannot make: where the halves are that all is multiplied with, and what the second (of minimums) is
# of the first, so that the elements are as often below zero as above.
HALVES = {"Q2_K": [(80, 1.0), (82, 1.5)], "Q3_K": [(108, 1.0)], "Q4_K": [(0, 1.0), (2, 7.5)],
          "Q5_K": [(0, 1.0), (2, 15.5)], "Q6_K": [(208, 1.0)]}


def random_blocks(kind, shape, generator):
    """A matrix of random bytes, but for each block's halves: its elements deviate by about 0.1."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (shape[0], shape[1] // 256, size), dtype=np.uint8)

    def with_scale(scale):
        scales = scale * generator.uniform(0.8, 1.2, blocks.shape[:2])
        for at, times in HALVES[kind.name]:
            halves = (times * scales).astype(np.float16)
            blocks[:, :, at:at + 2] = halves[:, :, None].view(np.uint8)
        return blocks.reshape(shape[0], -1)

    return with_scale(0.001 * 0.1 / gguf.dequantize(with_scale(0.001), kind).std())


def write_gguf(model, path, quantization):
    config = model.config
    arch = ARCHES[type(model)]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size_mlp", config.intermediate_size))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if arch == "llama4":
        writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)
        writer.add_vocab_size(config.vocab_size)
    if arch == "gpt-oss":
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma3":
        rope = config.rope_parameters["full_attention"]
        writer.add_sliding_window(config.sliding_window)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    else:
        rope = config.rope_parameters
        writer.add_rope_dimension_count(config.head_dim)
        if rope["rope_type"] == "llama3":
            writer.add_tensor("rope_freqs.weight", llama3_factors(config))
        if arch == "gpt-oss":
            writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rope["factor"])
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(VOCAB)])
    kinds = itertools.cycle(MIXED if quantization == "MIXED" else ["Q8_0" if quantization == "MXFP4" else quantization])
    generator = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.detach().numpy()
        if (heads := q_k_heads(arch, name, config)) is not None:
            data = permute(data, heads)
        if ".experts." in name:
            for part_name, part in zip(expert_names(name), split_experts(arch, name, data)):
                part = np.ascontiguousarray(part)
                if part.ndim == 2:
                    writer.add_tensor(part_name, part)
                else:
                    of_experts = gguf.GGMLQuantizationType[quantization]
                    writer.add_tensor(part_name, gguf.quantize(part, of_experts), raw_dtype=of_experts)
        elif data.ndim == 1 or gguf_name(arch, name).endswith("ffn_gate_inp.weight"):
            offset = 1.0 if arch == "gemma3" else 0.0
            writer.add_tensor(gguf_name(arch, name), data + np.float32(offset))
        else:
            kind = gguf.GGMLQuantizationType[next(kinds)]
            packed = (random_blocks(kind, data.shape, generator) if kind.name in HALVES
                      else gguf.quantize(data, kind))
            writer.add_tensor(gguf_name(arch, name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_gguf(path, config, model_class):
    """A float32 transformers model of a GGUF file's dequantized weights."""
    arch = ARCHES[model_class]
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    config._attn_implementation = "eager"
    model = model_class(config).eval().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                data = join_experts(arch, name, [stored[part] for part in expert_names(name)])
            else:
                data = stored[gguf_name(arch, name)]
            data = torch.from_numpy(np.array(data, dtype=np.float32))
            if (heads := q_k_heads(arch, name, config)) is not None:
                data = unpermute(data, heads)
            if "norm" in name and arch == "gemma3":
                data = data - 1.0
            parameter.copy_(data.reshape(parameter.shape))
    return model


# ---------------------------------------------------------------- YaRN

# theta, head dimension, parameters beside the factor and the original context
YARN = [
    (1000000.0, 128, {"factor": 4.0, "original_max_position_embeddings": 32768}),
    (150000.0, 64, {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}),
    (10000.0, 64, {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7}),
    (10000.0, 128, {"factor": 8.0, "original_max_position_embeddings": 2048, "attention_factor": 1.5}),
    (500000.0, 96, {"factor": 16.0, "original_max_position_embeddings": 8192, "beta_fast": 16.0, "beta_slow": 2.0}),
    (10000.0, 32, {"factor": 2.0, "original_max_position_embeddings": 6}),
    (10000.0, 16, {"factor": 0.5, "original_max_position_embeddings": 100000}),
]


def make_yarn():
    cases = []
    for theta, head_dim, parameters in YARN:
        parameters = {"rope_type": "yarn", "rope_theta": theta} | parameters
        config = LlamaConfig(head_dim=head_dim, hidden_size=4 * head_dim, num_attention_heads=4,
                             max_position_embeddings=1 << 18, rope_parameters=dict(parameters))
        inv_freq, attention_factor = ROPE_INIT_FUNCTIONS["yarn"](config)
        cases.append({"rope_parameters": parameters, "attention_factor": attention_factor,
                      "inv_freq": inv_freq.tolist()})
    (HERE / "yarn.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


# ---------------------------------------------------------------- real models

CHAT_PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "List three prime numbers and explain why each is prime.",
    "Translate 'good morning' to Spanish.",
    "def fibonacci(n):\n    # complete this Python function",
    "Summarize the story of Romeo and Juliet in two sentences.",
]
TEXT_PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "import numpy as np\n\ndef softmax(x):\n",
    "The three laws of thermodynamics are:",
    "Der schnelle braune Fuchs",
]
# Longer than Gemma's window of 512 tokens, and not the same sentence over and over.
LONG_PROMPT = "Ledger of the harbour master.\n" + "".join(
    f"Day {d}: {n} ships came in with {c}; the tide stood at {t} feet.\n"
    for d, n, c, t in ((d, d * 7 % 11 + 1, ["salt", "timber", "wool", "tin", "cider"][d % 5], d * 3 % 17 + 2)
                       for d in range(1, 27))) + "Day 27:"


def real_smollm2(reader):
    def field(key):
        return reader.fields[f"llama.{key}"].contents()

    config = LlamaConfig(
        vocab_size=field("vocab_size"), hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"), num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"), num_key_value_heads=field("attention.head_count_kv"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"), max_position_embeddings=field("context_length"),
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")})
    return config, LlamaForCausalLM


def real_gemma3(reader):
    def field(key):
        return reader.fields[f"gemma3.{key}"].contents()

    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=field("embedding_length"), intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"), num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"), head_dim=field("attention.key_length"),
        query_pre_attn_scalar=field("attention.key_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"), max_position_embeddings=field("context_length"),
        sliding_window=field("attention.sliding_window"), tie_word_embeddings=True,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": field("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})
    return config, Gemma3ForCausalLM


def greedy(model, prompt, count, eos):
    """Greedy token ids and, for each, how far its logit lies above the runner-up's."""
    ids, gaps, past, feed = [], [], None, prompt
    with torch.no_grad():
        while len(ids) < count:
            out = model(torch.tensor([feed]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            top = out.logits[0, -1].float().topk(2)
            ids.append(int(top.indices[0]))
            gaps.append(round(float(top.values[0] - top.values[1]), 5))
            feed = ids[-1:]
            if ids[-1] == eos:
                break
    return ids, gaps


def make_real(name, path):
    path = Path(path)
    reader = gguf.GGUFReader(path)
    config, model_class = (real_gemma3 if name.startswith("gemma") else real_smollm2)(reader)
    model = load_gguf(path, config, model_class)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    eos = reader.fields["tokenizer.ggml.eos_token_id"].contents()
    if model_class is LlamaForCausalLM:
        prompts = [tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True,
                                                 return_dict=False, tokenize=True) for p in CHAT_PROMPTS]
    else:
        bos = reader.fields["tokenizer.ggml.bos_token_id"].contents()
        prompts = [[bos] + tokenizer(p, add_special_tokens=False).input_ids for p in TEXT_PROMPTS + [LONG_PROMPT]]
    cases = []
    for prompt in prompts:
        ids, gaps = greedy(model, prompt, 48, eos)
        cases.append({"prompt_ids": prompt, "ids": ids, "gaps": gaps})
        print(f"{len(prompt)} tokens -> {tokenizer.decode(ids)!r}; least gap {min(gaps)}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = ",\n".join("    " + json.dumps(case) for case in cases)
    (HERE / "real").mkdir(exist_ok=True)
    (HERE / "real" / f"{name}.json").write_text(
        f'{{\n  "file_sha256": "{digest}",\n  "cases": [\n{lines}\n  ]\n}}\n')


if __name__ == "__main__":
    torch.set_num_threads(2)
    match sys.argv[1:]:
        case ["tiny", *cases]:
            for entry in TINY:
                if not cases or entry[0] in cases:
                    make_tiny(*entry)
        case ["yarn"]:
            make_yarn()
        case ["real", name, path]:
            make_real(name, path)
        case _:
            sys.exit(__doc__)
