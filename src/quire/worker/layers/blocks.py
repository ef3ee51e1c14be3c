"""The blocks that dense decoder families share. A family is a choice among their options.

hidden ── norm ── attention ──(+)── norm ── gated MLP ──(+)── ...      pre-norm decoder, residual between
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quire.checkpoint import Fields
from quire.worker.attention.protocol import AttentionSpec, KVSpec
from quire.worker.batch import Batch
from quire.worker.layers.attention import Attention
from quire.worker.layers.build import Build
from quire.worker.layers.embedding import Embedding, TiedHead
from quire.worker.layers.linear import Linear
from quire.worker.layers.norm import RMSNorm
from quire.worker.layers.rope import RotaryEmbedding

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""hidden_act of a config to the name that kernels know."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense decoder, in the words of its config.json."""

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
    def read(config: Fields, *, kv_heads: int | None = None, head_dim: int | None = None) -> Shape:
        """From a config; `kv_heads` and `head_dim` are the family's values where it names none.

        Raises:
            ConfigError: a size that is missing, absurd or does not divide.
        """
        hidden_size = config.integer("hidden_size")
        num_heads = config.integer("num_attention_heads", high=1 << 16)
        absent = None if config.has("num_key_value_heads") else kv_heads  # null means as many as heads
        num_kv_heads = config.integer("num_key_value_heads", absent or num_heads, high=1 << 16)
        if num_heads % num_kv_heads:
            config.fail("num_key_value_heads", f"must divide num_attention_heads ({num_heads})", num_kv_heads)
        if head_dim is None and config.values.get("head_dim") is None and hidden_size % num_heads:
            config.fail("num_attention_heads", f"must divide hidden_size ({hidden_size})", num_heads)
        head_size = config.integer("head_dim", head_dim or hidden_size // num_heads, high=1 << 16)
        if head_size % 2:
            config.fail("head_dim", "must be even for rotary embedding", head_size)
        activation = config.text("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            config.fail("hidden_act", f"must be one of {', '.join(ACTIVATIONS)}", activation)
        return Shape(
            vocab_size=config.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.integer("intermediate_size"),
            num_layers=config.integer("num_hidden_layers", high=10_000),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_size,
            norm_eps=config.number("rms_norm_eps", 1e-6, high=1.0),
            activation=activation,
            tied=config.flag("tie_word_embeddings", False),
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


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions.

    Args:
        index: of the layer, and of its KV tensor.
        qkv_bias, out_bias: which projections have one.
        qk_norm: normalise each head of q and k before they are turned (Qwen 3).
        window: positions that a token sees, itself included; None is all.
    """

    def __init__(
        self,
        shape: Shape,
        index: int,
        build: Build,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        qk_norm: bool = False,
        window: int | None = None,
    ) -> None:
        super().__init__()
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        parts = (heads * dim, kv_heads * dim, kv_heads * dim)
        self.qkv_proj = Linear(shape.hidden_size, parts, build, bias=qkv_bias)
        self.o_proj = Linear(heads * dim, (shape.hidden_size,), build, bias=out_bias, cut=1)
        self.q_norm = RMSNorm(dim, shape.norm_eps, build) if qk_norm else None
        self.k_norm = RMSNorm(dim, shape.norm_eps, build) if qk_norm else None
        spec = AttentionSpec(heads, kv_heads, dim, scale=dim**-0.5, window=window)
        self.attention = Attention(spec, index, build)

    def forward(
        self, hidden: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor], batch: Batch
    ) -> torch.Tensor:  # [tokens, hidden], cos and sin -> [tokens, hidden]
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = (self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        return self.o_proj(self.attention(self.qkv_proj(hidden), batch, norms=norms, turn=turn))


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), gate and up in one product."""

    def __init__(self, shape: Shape, build: Build, *, bias: bool = False) -> None:
        super().__init__()
        width = shape.intermediate_size
        self.gate_up_proj = Linear(shape.hidden_size, (width, width), build, bias=bias, is_gated=True)
        self.down_proj = Linear(width, (shape.hidden_size,), build, bias=bias, cut=1)
        self.activation = ACTIVATIONS[shape.activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [tokens, hidden] -> [tokens, hidden]
        return self.down_proj(self.gate_up_proj.gated(x, self.activation))


class DecoderLayer(nn.Module):
    """Attention, then MLP, each behind its norm; `options` go to SelfAttention."""

    def __init__(self, shape: Shape, index: int, build: Build, *, mlp_bias: bool = False, **options: Any) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps, build)
        self.self_attn = SelfAttention(shape, index, build, **options)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_eps, build)
        self.mlp = GatedMLP(shape, build, bias=mlp_bias)

    def forward(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        turn: tuple[torch.Tensor, torch.Tensor],
        batch: Batch,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(this block's output, the sum before it): the next norm adds them up."""
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm.add(hidden, residual)
        hidden = self.self_attn(hidden, turn, batch)
        hidden, residual = self.post_attention_layernorm.add(hidden, residual)
        return self.mlp(hidden), residual


class Decoder(nn.Module):
    """Embedding, layers, last norm. `layer(index)` makes the family's layers."""

    def __init__(self, shape: Shape, config: Fields, build: Build, layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = Embedding(shape.vocab_size, shape.hidden_size, build)
        self.rope = RotaryEmbedding(shape.head_dim, config, build)
        self.layers = nn.ModuleList(layer(index) for index in range(shape.num_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_eps, build)

    def forward(self, batch: Batch) -> torch.Tensor:  # [tokens, hidden]
        hidden, residual = self.embed_tokens(batch.input_ids), None
        turn = self.rope(batch.positions)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual, turn, batch)
        return self.norm.add(hidden, residual)[0]


class CausalLM(nn.Module):
    """A decoder and the head over its vocabulary: what the runner calls."""

    def __init__(self, shape: Shape, config: Fields, build: Build, layer: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.model = Decoder(shape, config, build, layer)
        self.tied = shape.tied
        if shape.tied:
            self.lm_head: nn.Module = TiedHead(self.model.embed_tokens, build)
        else:
            self.lm_head = Linear(shape.hidden_size, (shape.vocab_size,), build)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states after the last norm: [tokens, hidden]."""
        return self.model(batch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab], in the format of the activations."""
        return self.lm_head(hidden)

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps per token, in the order of `batch.kv`."""
        return tuple(layer.self_attn.attention.kv_spec for layer in self.model.layers)
