#!/usr/bin/env python3
"""Makes the golden data of quantized checkpoints: tiny models as make_golden.py has them, with matrices of random codes
and scales in each publisher's layout; and transformers' logits for what those stand for.

    python tests/golden/formats.py [CASE ...]

A case is a folder CASE-FORMAT. A format is a function of (generator, rows, cols) that gives the tensors of a module that is a matrix [rows, cols], by
the last part of their names, and the matrix itself, float32 and exact. Layouts:

    fp8     as AutoFP8 and DeepSeek store it (`quant_method` fp8), and compressed-tensors (float-quantized)
    ct      compressed-tensors: int-quantized, and pack-quantized (neighbours of a row in a word)
    gptq    AutoGPTQ's and GPTQModel's: [cols, rows], neighbours of a row in a word; zeros less one in version 1
    awq     AutoAWQ's `gemm`: [cols, rows], eight rows in a word, in an order of their own

Experts are modules N.gate_proj, N.up_proj and N.down_proj, as all these tools make of them; or `listed`, as GPTQModel
stores gpt-oss's: gate_up.N, of which gate's and up's rows alternate, and down.N.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    LlamaForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
)

import make_golden as tiny

# What is stored as it was.
KEPT = ("embed_tokens", "lm_head", "router", "gate")
GROUP = 32


def random_scales(generator, *shape, deviation, dtype=torch.bfloat16):
    """Around `deviation`, each its own; exact in `dtype`."""
    return (deviation * (0.5 + torch.rand(shape, generator=generator))).to(dtype)


def repeat(scales, down, across, rows, cols):
    """A number for each element, of one for each block of `down` rows and `across` columns."""
    return scales.float().repeat_interleave(down, 0).repeat_interleave(across, 1)[:rows, :cols]


# ---------------------------------------------------------------- FP8

def fp8(scale_name, shape, block, dtype=torch.float32):
    """`shape` and `block` are functions of (rows, cols)."""

    def make(generator, rows, cols):
        codes = (8 * torch.randn((rows, cols), generator=generator)).to(torch.float8_e4m3fn)
        scales = random_scales(generator, *shape(rows, cols), deviation=0.025, dtype=dtype)
        down, across = block(rows, cols)
        whole = scales.reshape(-(-rows // down), -(-cols // across))
        return {"weight": codes, scale_name: scales}, codes.float() * repeat(whole, down, across, rows, cols)

    return make


def blocks(down, across):
    return lambda rows, cols: (-(-rows // down), -(-cols // across))


# ---------------------------------------------------------------- integers

def integers(generator, rows, cols, bits, group, symmetric, scale_dtype):
    """Codes [rows, cols] and zeros [rows, groups], from 0 on; scales [rows, groups]; the matrix of codes that are in
    groups of neighbours."""
    most = 2**bits - 1
    codes = torch.randint(0, most + 1, (rows, cols), generator=generator, dtype=torch.int32)
    zeros = torch.randint(0, most + 1, (rows, cols // group), generator=generator, dtype=torch.int32)
    if symmetric:
        zeros = torch.full_like(zeros, 2 ** (bits - 1))
    # Zeros off the middle shift the weights: keep that small beside their spread.
    else:
        zeros = zeros // 4 + (most + 1) * 3 // 8
    scales = random_scales(generator, rows, cols // group, deviation=0.7 / most, dtype=scale_dtype)
    return codes, zeros, scales


def matrix(codes, zeros, scales, group_of):
    """`group_of`: of each column."""
    return (codes - zeros[:, group_of]).float() * scales.float()[:, group_of]


def words(codes, bits, order=None):
    """Neighbours of the last dimension into 32 bits, from the low end; `order` says which stand where."""
    count = 32 // bits
    parts = codes.reshape(*codes.shape[:-1], -1, count).to(torch.int64)
    if order is not None:
        parts = parts[..., order]
    shifts = bits * torch.arange(count)
    packed = (parts << shifts).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32).contiguous()


def ct_int8(generator, rows, cols):
    codes, zeros, scales = integers(generator, rows, cols, 8, cols, True, torch.bfloat16)
    dense = matrix(codes, zeros, scales, torch.zeros(cols, dtype=torch.long))
    return {"weight": (codes - 128).to(torch.int8), "weight_scale": scales}, dense


def ct_packed(bits, group, symmetric, ordered=False):
    def make(generator, rows, cols):
        across = group or cols
        codes, zeros, scales = integers(generator, rows, cols, bits, across, symmetric, torch.bfloat16)
        group_of = torch.arange(cols) // across
        tensors = {"weight_packed": words(codes, bits), "weight_scale": scales,
                   "weight_shape": torch.tensor([rows, cols])}
        if ordered:
            group_of = group_of[torch.randperm(cols, generator=generator)]
            tensors["weight_g_idx"] = group_of.to(torch.int32)
        if not symmetric:
            # Down the rows, whose number is a multiple of what a word holds.
            tensors["weight_zero_point"] = words(zeros.T.contiguous(), bits).T.contiguous()
        return tensors, matrix(codes, zeros, scales, group_of)

    return make


def gptq(bits, group, symmetric, act_order=False, version=1):
    def make(generator, rows, cols):
        across = group or cols
        codes, zeros, scales = integers(generator, rows, cols, bits, across, symmetric, torch.float16)
        group_of = torch.arange(cols) // across
        if act_order:
            group_of = group_of[torch.randperm(cols, generator=generator)]
        stored = (zeros - (1 if version == 1 else 0)) % 2**bits
        tensors = {"qweight": words(codes, bits).T.contiguous(), "qzeros": words(stored.T.contiguous(), bits),
                   "scales": scales.T.contiguous(), "g_idx": group_of.to(torch.int32)}
        return tensors, matrix(codes, zeros, scales, group_of)

    return make


AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def awq(generator, rows, cols):
    codes, zeros, scales = integers(generator, rows, cols, 4, GROUP, False, torch.float16)
    tensors = {"qweight": words(codes.T.contiguous(), 4, AWQ_ORDER), "qzeros": words(zeros.T.contiguous(), 4, AWQ_ORDER),
               "scales": scales.T.contiguous()}
    return tensors, matrix(codes, zeros, scales, torch.arange(cols) // GROUP)


# ---------------------------------------------------------------- configs

def ct_config(format, **weights):
    weights = {"dynamic": False, "symmetric": True, "actorder": None, "group_size": None} | weights
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": format, "config_groups": {"group_0": group},
            "ignore": ["lm_head", "re:.*router$", "re:.*mlp.gate$"], "kv_cache_scheme": None,
            "quantization_status": "compressed"}


def gptq_config(**fields):
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True,
            "checkpoint_format": "gptq", "lm_head": False, "true_sequential": True} | fields


# name: (the function, the config's quantization_config)
FORMATS = {
    "fp8-tensor": (fp8("weight_scale", lambda rows, cols: (), lambda rows, cols: (rows, cols)),
                   {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}),
    "fp8-channel": (fp8("weight_scale", lambda rows, cols: (rows, 1), lambda rows, cols: (1, cols), torch.bfloat16),
                    ct_config("float-quantized", type="float", num_bits=8, strategy="channel")),
    "fp8-block": (fp8("weight_scale_inv", blocks(32, 64), lambda rows, cols: (32, 64)),
                  {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                   "weight_block_size": [32, 64], "modules_to_not_convert": ["lm_head"]}),
    "ct-int8": (ct_int8, ct_config("int-quantized", type="int", num_bits=8, strategy="channel")),
    "ct-int4": (ct_packed(4, GROUP, True),
                ct_config("pack-quantized", type="int", num_bits=4, strategy="group", group_size=GROUP)),
    "ct-int4-zeros": (ct_packed(4, GROUP, False, ordered=True),
                      ct_config("pack-quantized", type="int", num_bits=4, strategy="group", group_size=GROUP,
                                symmetric=False, actorder="group")),
    "ct-int8-packed": (ct_packed(8, None, True),
                       ct_config("pack-quantized", type="int", num_bits=8, strategy="channel")),
    "gptq": (gptq(4, GROUP, True), gptq_config()),
    "gptq-act-order": (gptq(4, GROUP, False, act_order=True), gptq_config(desc_act=True, sym=False)),
    "gptq-v2": (gptq(4, None, False, version=2),
                gptq_config(group_size=-1, sym=False, checkpoint_format="gptq_v2")),
    "gptq-int8": (gptq(8, GROUP, True), gptq_config(bits=8)),
    "gptq-listed": (gptq(4, GROUP, True), gptq_config()),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True,
                  "modules_to_not_convert": None}),
}


# ---------------------------------------------------------------- checkpoints

def quantized(tensors, name, seed):
    """A checkpoint's tensors with its matrices in format `name`; the same with what they stand for, in float32; and the
    config's quantization_config. Only the shapes of the matrices matter; what is fused becomes a module an expert."""
    make, config = FORMATS[name]
    generator = torch.Generator().manual_seed(seed + 1)
    stored, dense = {}, {}

    def pack(module, rows, cols):
        made, values = make(generator, rows, cols)
        stored.update({f"{module}.{last}": tensor for last, tensor in made.items()})
        return values

    for key in sorted(tensors):
        tensor, module = tensors[key], key.removesuffix(".weight")
        if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            bias = tensors.get(f"{key}_bias")
            dense[key] = torch.empty(tensor.shape)
            for expert, part, features in parts_of_experts(key, tensor, bias is not None, name.endswith("listed")):
                rows, cols = tensor[expert][:, features].T.shape
                dense[key][expert][:, features] = pack(part, rows, cols).T
                if bias is not None:
                    stored[f"{part}.bias"] = bias[expert, features]
        elif key.endswith(("experts.gate_up_proj_bias", "experts.down_proj_bias")):
            dense[key] = tensor.float()
        elif key.endswith(".weight") and tensor.dim() == 2 and not module.endswith(KEPT):
            dense[key] = pack(module, *tensor.shape)
        else:
            stored[key], dense[key] = tensor, tensor.float()
    return stored, dense, config


def parts_of_experts(key, tensor, alternating, listed):
    """The modules that fused experts, [experts, in_features, out_features], are stored as: of which expert, the module's
    name, and which output features it has. Gate's and up's come one after the other or `alternating` (gpt-oss)."""
    prefix, projection = key.rsplit(".", 1)
    half = tensor.shape[2] // 2
    gate, up = (slice(0, None, 2), slice(1, None, 2)) if alternating else (slice(0, half), slice(half, None))
    for expert in range(tensor.shape[0]):
        if listed:
            yield expert, f"{prefix}.{projection.removesuffix('_proj')}.{expert}", slice(None)
        elif projection == "down_proj":
            yield expert, f"{prefix}.{expert}.down_proj", slice(None)
        else:
            yield expert, f"{prefix}.{expert}.gate_proj", gate
            yield expert, f"{prefix}.{expert}.up_proj", up


def of_tensors(model, tensors):
    """A model like this one, of published tensors."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        loaded, report = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                     output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return loaded.eval()


def make_case(case, config, model_class, name):
    folder = tiny.HERE / f"{case}-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(hashlib.sha256(folder.name.encode()).digest()[:4], "little")
    # GPTQ's and AWQ's scales are f16, and so is the rest.
    dtype = torch.float16 if name.startswith(("gptq", "awq")) else torch.bfloat16
    model = model_class(config()).eval().float()
    tiny.randomize(model, seed, dtype)
    tensors = {key: tensor.to(dtype) for key, tensor in tiny.published(model).items()}
    stored, dense, quantization = quantized(tensors, name, seed)
    save_file({key: tensor.contiguous() for key, tensor in stored.items()}, folder / "model.safetensors")
    config = model.config.to_dict() | {"architectures": [model_class.__name__], "quantization_config": quantization}
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    golden = tiny.recorded(of_tensors(model, dense), tiny.random_prompts(seed))
    save_file(golden, folder / "golden.safetensors")
    print(f"{folder.name}: logits' deviation {golden['logits.0'].std().item():.2f}")


def short_gemma3():
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    return Gemma3TextConfig(**(tiny.tiny_gemma3().to_dict() | layers))


def small_gpt_oss():
    config = tiny.tiny_gpt_oss()
    config.num_local_experts, config.num_experts_per_tok, config.intermediate_size = 4, 2, 64
    config.tie_word_embeddings = True
    return config


# Of llama all the ways there are; of the others one of each kind.
KINDS = ["fp8-tensor", "fp8-channel", "fp8-block", "ct-int8", "ct-int4", "gptq", "awq"]
CASES = [
    ("llama", tiny.tiny_llama3, LlamaForCausalLM, [name for name in FORMATS if not name.endswith("listed")]),
    ("gemma3", short_gemma3, Gemma3ForCausalLM, KINDS),
    ("qwen3", tiny.tiny_qwen3_yarn, Qwen3ForCausalLM, KINDS),
    ("qwen3_moe", tiny.tiny_qwen3_moe, Qwen3MoeForCausalLM, KINDS),
    ("llama4", tiny.tiny_llama4, Llama4ForCausalLM, KINDS),
    ("gpt-oss", small_gpt_oss, GptOssForCausalLM, [*KINDS, "gptq-listed"]),
]

if __name__ == "__main__":
    torch.set_num_threads(2)
    for case, config, model_class, names in CASES:
        for name in names:
            if len(sys.argv) == 1 or f"{case}-{name}" in sys.argv[1:]:
                make_case(case, config, model_class, name)
