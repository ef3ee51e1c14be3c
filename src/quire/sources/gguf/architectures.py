"""GGUF's architectures: what its keys and tensors are called in a checkpoint of transformers. One row per family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from quire.errors import ConfigError
from quire.sources.gguf.metadata import Metadata

Config = dict[str, Any]

INTEGERS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
}
OPTIONAL_INTEGERS = {
    "intermediate_size": "feed_forward_length",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SANDWICH = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
EXPERTS = {
    **LAYER,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
MIXTRAL = {
    **LAYER,
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
NEVER = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that went into the config."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family: its class and type in transformers, and how its files differ from those.

    Attributes:
        layer: names of a layer's tensors; {} is an expert's number, counted from the tensor's first dimension.
        layers: where layers are in a checkpoint.
        outer: names of the other tensors.
        turned: rows of q and k are interleaved: a turn's two numbers are neighbours.
        grouped: a checkpoint's q, k and v rows lie group by group; a GGUF's are sorted.
        norms_from_one: a GGUF's norms are one more than a checkpoint's.
        more: further keys of the config.
    """

    name: str
    model_type: str
    layer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(LAYER))
    layers: str = "model.layers"
    outer: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(OUTER))
    turned: bool = False
    grouped: bool = False
    norms_from_one: bool = False
    more: Callable[[Metadata, Config], Config] = lambda data, config: {}


def find(data: Metadata) -> Architecture:
    """The row of a file.

    Raises:
        ConfigError: it is not known; the nearest one is named.
    """
    name = data.architecture
    if name == "llama" and data.integer("llama.expert_count", 0):
        name = "llama with experts"
    if name not in ARCHITECTURES:
        near = get_close_matches(name, ARCHITECTURES, 1, cutoff=0.5)
        raise ConfigError(
            f"{data.where}: GGUF architecture {name[:60]!r} is not known."
            + (f" The nearest one is {near[0]}." if near else "")
            + f" Known: {', '.join(sorted(ARCHITECTURES))}. Others run from the original checkpoint (safetensors),"
            " with quire[transformers] and --model-impl auto."
        )
    return ARCHITECTURES[name]


# ---------------------------------------------------------------------------------------------------------------
# what families have of their own


def _llama(data: Metadata, config: Config) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in data.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in data.tensors,
        "head_dim": config.get("head_dim") or data.integer("llama.rope.dimension_count", None, low=2),
    }


def _experts(data: Metadata, config: Config) -> Config:
    prefix = data.architecture
    count = data.integer(f"{prefix}.expert_count", low=1, high=1 << 16)
    wide = data.integer(f"{prefix}.expert_feed_forward_length", None, low=1)
    shared = data.integer(f"{prefix}.expert_shared_feed_forward_length", None, low=1)
    found = {
        "num_experts": count,
        "num_local_experts": count,
        "num_experts_per_tok": data.integer(f"{prefix}.expert_used_count", low=1, high=count),
        "moe_intermediate_size": wide,
        "shared_expert_intermediate_size": shared,
        "norm_topk_prob": prefix == "qwen3moe",
    }
    return {key: value for key, value in found.items() if value is not None}


def _gemma2(data: Metadata, config: Config) -> Config:
    prefix = data.architecture
    found: Config = {
        "sliding_window": data.integer(f"{prefix}.attention.sliding_window", 4096, low=1),
        "query_pre_attn_scalar": _scalar(data, config, whole_layers=46),
    }
    for key, name in (("attn_logit_softcapping",) * 2, ("final_logit_softcapping",) * 2):
        found[key] = data.number(f"{prefix}.{name}", None)
    return found


def _gemma3(data: Metadata, config: Config) -> Config:
    found: Config = {
        "sliding_window": data.integer("gemma3.attention.sliding_window", 1024, low=1),
        "query_pre_attn_scalar": _scalar(data, config, whole_layers=62),
        "rope_theta": data.number("gemma3.rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": data.number("gemma3.rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": data.number("gemma3.final_logit_softcapping", None),
    }
    pattern = data.metadata_list("gemma3.attention.sliding_window_pattern")
    if pattern:
        found["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    return found


def _scalar(data: Metadata, config: Config, *, whole_layers: int) -> float:
    """Scores are divided by the root of it: a head's size, but hidden_size / heads in the family's 27B."""
    scale = data.number(f"{data.architecture}.attention.scale", None)
    if scale:
        return float(scale) ** -2
    if config["num_hidden_layers"] == whole_layers:
        return float(config["hidden_size"] // config["num_attention_heads"])
    return float(config.get("head_dim") or 256)


def _phi3(data: Metadata, config: Config) -> Config:
    head_dim = config["hidden_size"] // max(1, config["num_attention_heads"])
    turned = data.integer("phi3.rope.dimension_count", head_dim, low=2)
    found: Config = {"sliding_window": data.integer("phi3.attention.sliding_window", 0) or None}
    if turned != head_dim:
        found["partial_rotary_factor"] = turned / max(1, head_dim)
    return found


def _falcon(data: Metadata, config: Config) -> Config:
    kv_heads = config.pop("num_key_value_heads", 1)
    several = kv_heads > 1
    wide = config.pop("intermediate_size", 4 * config["hidden_size"])
    return {
        "new_decoder_architecture": several,
        "num_kv_heads": kv_heads,
        "multi_query": not several,
        "num_ln_in_parallel_attn": 2 if "blk.0.attn_norm_2.weight" in data.tensors else 1,
        "bias": "blk.0.attn_qkv.bias" in data.tensors,
        "parallel_attn": True,
        "ffn_hidden_size": wide,
        "layer_norm_epsilon": data.number("falcon.attention.layer_norm_epsilon", 1e-5),
    }


FALCON = {
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
    "attn_norm": "input_layernorm",
}
FALCON_OUTER = {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head"}
PHI3 = {**LAYER, "ffn_up": "mlp.gate_up_proj"}

ARCHITECTURES: dict[str, Architecture] = {
    "falcon": Architecture(
        "FalconForCausalLM", "falcon", FALCON, "transformer.h", FALCON_OUTER, grouped=True, more=_falcon
    ),
    "gemma": Architecture("GemmaForCausalLM", "gemma", norms_from_one=True),
    "gemma2": Architecture("Gemma2ForCausalLM", "gemma2", SANDWICH, norms_from_one=True, more=_gemma2),
    "gemma3": Architecture("Gemma3ForCausalLM", "gemma3_text", SANDWICH, norms_from_one=True, more=_gemma3),
    "llama": Architecture("LlamaForCausalLM", "llama", turned=True, more=_llama),
    "llama with experts": Architecture("MixtralForCausalLM", "mixtral", MIXTRAL, turned=True, more=_experts),
    "phi3": Architecture("Phi3ForCausalLM", "phi3", PHI3, more=_phi3),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2"),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", "qwen2_moe", EXPERTS, more=_experts),
    "qwen3": Architecture("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", "qwen3_moe", EXPERTS, more=_experts),
}
"""general.architecture to its row. Mistral's files say llama."""
