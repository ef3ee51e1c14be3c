"""Shape: the sizes of a decoder, read from a config.json in whichever words its family writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from quire.checkpoint import Fields

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""Activations of configs to the names that kernels know."""
FOUR_TIMES = "4x"
"""An absent intermediate_size that follows from hidden_size."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense decoder; `activation` is a kernel's name."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    tied: bool

    @staticmethod
    def read(
        config: Fields, *, names: Mapping[str, str] = MappingProxyType({}), absent: Mapping[str, Any] | None = None
    ) -> Shape:
        """From a config.

        Args:
            names: the family's own words for our keys.
            absent: the family's values of our keys where the config names none.

        Raises:
            ConfigError: a size that is missing, absurd or does not divide.
        """
        family = absent or {}

        def key(ours: str) -> str:
            return names.get(ours, ours)

        hidden_size = config.integer(key("hidden_size"))
        num_heads = config.integer(key("num_attention_heads"), high=1 << 16)
        kv_key = key("num_key_value_heads")
        few = None if config.has(kv_key) else family.get("num_key_value_heads")  # null means as many as heads
        num_kv_heads = config.integer(kv_key, few or num_heads, high=1 << 16)
        if num_heads % num_kv_heads:
            config.fail(kv_key, f"must divide {key('num_attention_heads')} ({num_heads})", num_kv_heads)
        own_dim = family.get("head_dim")
        if own_dim is None and config.values.get("head_dim") is None and hidden_size % num_heads:
            config.fail(key("num_attention_heads"), f"must divide {key('hidden_size')} ({hidden_size})", num_heads)
        head_dim = config.integer("head_dim", own_dim or hidden_size // num_heads, high=1 << 16)
        if head_dim % 2:
            config.fail("head_dim", "must be even for rotary embedding", head_dim)
        activation = config.text(key("hidden_act"), family.get("hidden_act", "silu"))
        if activation not in ACTIVATIONS:
            config.fail(key("hidden_act"), f"must be one of {', '.join(ACTIVATIONS)}", activation)
        wide = (4 * hidden_size,) if family.get("intermediate_size") == FOUR_TIMES else ()
        return Shape(
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.integer(key("intermediate_size"), *wide),
            num_layers=config.integer(key("num_hidden_layers"), high=10_000),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=config.number(key("rms_norm_eps"), family.get("rms_norm_eps", 1e-6), high=1.0),
            activation=ACTIVATIONS[activation],
            tied=config.flag("tie_word_embeddings", family.get("tie_word_embeddings", False)),
        )


def layer_windows(config: Fields, num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer where a config mixes full and windowed ones, as Qwen's do.

    `layer_types` names them one by one; without it the layers from `max_window_layers` on have the window.
    Nothing has one unless `use_sliding_window` is true.
    """
    absent = None if config.has("sliding_window") else 4096
    window = config.integer("sliding_window", absent) if config.flag("use_sliding_window", False) else None
    kinds = config.texts("layer_types")
    if kinds:
        if len(kinds) != num_layers:
            config.fail("layer_types", f"must name {num_layers} layers", list(kinds))
        unknown = set(kinds) - {"full_attention", "sliding_attention"}
        if unknown:
            config.fail("layer_types", "must be full_attention or sliding_attention", sorted(unknown)[0])
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = config.integer("max_window_layers", 28, low=0)
    return tuple(window if index >= first else None for index in range(num_layers))
