"""GGUF files of a checkpoint, written by the `gguf` package: names by its own map, what llama.cpp's converter does to
tensors done here once more, from its description."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

Tensors = dict[str, np.ndarray[Any, Any]]
ARCHITECTURES = {
    "FalconForCausalLM": "falcon",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "GemmaForCausalLM": "gemma",
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
}


def write_gguf(
    folder: Path,
    path: Path,
    *,
    kind: Kind = Kind.F32,
    split_max_tensors: int = 0,
    tokenizer: bool = True,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> list[Path]:
    """A checkpoint as GGUF.

    Args:
        folder: with config.json, model.safetensors and tokenizer.json.
        path: of the file, or of the name that parts are numbered after.
        kind: of matrices; what has one dimension stays F32.
        split_max_tensors: of a part.
        change: called before the file is written, to add what else it says.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split_max_tensors)
    _add_sizes(writer, arch, config)
    if tokenizer:
        add_byte_pairs(writer, folder)
    tensors = {name: tensor.float().numpy() for name, tensor in load_file(folder / "model.safetensors").items()}
    for name, tensor in _converted(arch, config, tensors).items():
        stored = kind if tensor.ndim > 1 and "ffn_gate_inp" not in name else Kind.F32
        if stored in (Kind.F32, Kind.F16):
            writer.add_tensor(name, tensor.astype(np.float32 if stored == Kind.F32 else np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(path.name.replace(".gguf", "*.gguf")))


def _add_sizes(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config.get("max_position_embeddings", 2048))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config.get("ffn_hidden_size") or config.get("intermediate_size"))
    writer.add_head_count(heads)
    if arch == "falcon":
        writer.add_head_count_kv(config["num_kv_heads"] if config["new_decoder_architecture"] else 1)
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope.get("rope_theta", 10_000.0))
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if config.get("head_dim"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if arch in ("phi3", "gemma2", "gemma3") and config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch in ("gemma2", "gemma3"):
        writer.add_attention_scale(config["query_pre_attn_scalar"] ** -0.5)
    if arch == "gemma3":
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if rope.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if experts := config.get("num_local_experts") or config.get("num_experts"):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        if config.get("moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        if config.get("shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config["shared_expert_intermediate_size"])


def _converted(arch: str, config: dict[str, Any], tensors: Tensors) -> Tensors:
    """Names of GGUF, and values as its graphs want them."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    found: Tensors = {}
    for name, tensor in _stacked(tensors).items():
        if config.get("tie_word_embeddings") and name == "lm_head.weight":
            continue
        if arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).swapaxes(1, 2).reshape(tensor.shape)
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if "query_key_value" in name:
            tensor = _sorted_qkv(tensor, config)
        found[names.get_name(name, try_suffixes=(".weight", ".bias")) or name] = np.ascontiguousarray(tensor)
    found.update(_rope_factors(config))
    return found


def _stacked(tensors: Tensors) -> Tensors:
    """Experts one above the other, under the names that the map knows."""
    experts: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
    found: Tensors = {}
    for name, tensor in tensors.items():
        before, mark, after = name.partition(".experts.")
        if not mark:
            found[name] = tensor
            continue
        number, _, rest = after.partition(".")
        experts.setdefault(f"{before}.experts.{rest}", {})[int(number)] = tensor
    found.update({name: np.stack([parts[i] for i in range(len(parts))]) for name, parts in experts.items()})
    return found


def _sorted_qkv(tensor: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    heads = config["num_attention_heads"]
    groups = config.get("num_kv_heads") or 1
    if not config.get("new_decoder_architecture"):
        groups = 1
    dim = config["hidden_size"] // heads
    parts = tensor.reshape(groups, heads // groups + 2, dim, *tensor.shape[1:])
    q, k, v = parts[:, :-2], parts[:, [-2]], parts[:, [-1]]
    return np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in (q, k, v)])


def _rope_factors(config: dict[str, Any]) -> Tensors:
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{n}.weight": np.array(rope[f"{n}_factor"], np.float32) for n in ("long", "short")}
    if rope.get("rope_type") != "llama3":
        return {}
    dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    old, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    factors = []
    for i in range(0, dim, 2):
        wave = 2 * np.pi * rope["rope_theta"] ** (i / dim)
        if wave < old / high:
            factors.append(1.0)
        elif wave > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def add_byte_pairs(writer: gguf.GGUFWriter, folder: Path, pre: str = "gpt-2") -> None:
    """The byte-level BPE of a tokenizer.json."""
    said = json.loads((folder / "tokenizer.json").read_text())
    vocab = {**said["model"]["vocab"], **{token["content"]: token["id"] for token in said["added_tokens"]}}
    special = {token["id"] for token in said["added_tokens"]}
    texts = sorted(vocab, key=lambda text: vocab[text])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(texts)
    writer.add_token_types([3 if i in special else 1 for i in range(len(texts))])
    writer.add_token_merges([" ".join(pair) for pair in said["model"]["merges"]])
    writer.add_bos_token_id(vocab["<s>"])
    writer.add_eos_token_id(vocab["</s>"])
    writer.add_chat_template(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])
