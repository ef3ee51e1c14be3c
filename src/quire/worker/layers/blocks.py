"""The blocks that decoder families share. A family is a choice among their options.

DecoderLayer     x ── norm ── attention ──(+)── norm ── MLP ──(+)──             Llama, Mistral, Qwen, Gemma 1, Phi 3
SandwichLayer    x ── norm ── attention ── norm ──(+)── norm ── MLP ── norm ──(+)──             Gemma 2 and 3
ParallelLayer    x ── norm ─┬─ attention ─┬──(+)──                                              Falcon, Phi 2
                            └─ MLP ───────┘
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from quire.worker.attention.protocol import AttentionSpec, KVSpec
from quire.worker.batch import Batch
from quire.worker.layers.attention import Attention
from quire.worker.layers.build import Build
from quire.worker.layers.embedding import Embedding, TiedHead
from quire.worker.layers.experts import Experts
from quire.worker.layers.linear import Linear
from quire.worker.layers.mlp import GatedMLP
from quire.worker.layers.norm import Norm, RMSNorm
from quire.worker.layers.rope import RotaryEmbedding, turned_order
from quire.worker.layers.shape import Shape

Turn = tuple[torch.Tensor, torch.Tensor]
"""cos and sin of a step's positions."""


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions.

    Args:
        index: of the layer, and of its KV tensor.
        qkv_bias, out_bias: which projections have one.
        head_norm: makes what normalises each head of q and k before they are turned (Qwen 3, Gemma 3).
        window: positions that a token sees, itself included; None is all.
        scale: of the scores; None is 1 / sqrt(head_dim).
        soft_cap: scores s become cap * tanh(s / cap).
        turned: numbers of a head that turn; None is all.
        order: of the checkpoint's q, k and v rows, where it is not q, k, v.
    """

    def __init__(
        self,
        shape: Shape,
        index: int,
        build: Build,
        *,
        qkv_bias: bool = False,
        out_bias: bool = False,
        head_norm: Callable[[], RMSNorm] | None = None,
        window: int | None = None,
        scale: float | None = None,
        soft_cap: float | None = None,
        turned: int | None = None,
        order: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        heads, kv_heads, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        parts = (heads * dim, kv_heads * dim, kv_heads * dim)
        if turned not in (None, dim):
            both = turned_order(heads + kv_heads, dim, turned)
            order = torch.cat([both, torch.arange(len(both), sum(parts))])
        self.qkv_proj = Linear(shape.hidden_size, parts, build, bias=qkv_bias, order=order)
        self.o_proj = Linear(heads * dim, (shape.hidden_size,), build, bias=out_bias, cut=1)
        self.q_norm = head_norm() if head_norm else None
        self.k_norm = head_norm() if head_norm else None
        scale = dim**-0.5 if scale is None else scale
        spec = AttentionSpec(heads, kv_heads, dim, scale=scale, window=window, soft_cap=soft_cap)
        self.attention = Attention(spec, index, build)

    def forward(self, hidden: torch.Tensor, turn: Turn, batch: Batch) -> torch.Tensor:
        """[tokens, hidden] -> [tokens, hidden]."""
        norms = None
        if self.q_norm is not None and self.k_norm is not None:
            norms = (self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)
        return self.o_proj(self.attention(self.qkv_proj(hidden), batch, norms=norms, turn=turn))


class DecoderLayer(nn.Module):
    """Attention, then MLP, each behind its norm; `options` go to SelfAttention.

    Args:
        mlp: what stands after the attention; None is a gated MLP.
        norm: makes the norms; None is RMSNorm.
    """

    def __init__(
        self,
        shape: Shape,
        index: int,
        build: Build,
        *,
        mlp: nn.Module | None = None,
        norm: Callable[[], Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        make = norm or (lambda: RMSNorm(shape.hidden_size, shape.norm_eps, build))
        self.input_layernorm = make()
        self.self_attn = SelfAttention(shape, index, build, **options)
        self.post_attention_layernorm = make()
        self.mlp = mlp if mlp is not None else GatedMLP(shape, build)

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, turn: Turn, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(this block's output, the sum before it): the next norm adds them up."""
        hidden, residual = add_norm(self.input_layernorm, hidden, residual)
        hidden = self.self_attn(hidden, turn, batch)
        hidden, residual = self.post_attention_layernorm.add(hidden, residual)
        return self.mlp(hidden), residual


class SandwichLayer(nn.Module):
    """Attention and MLP each between two norms; `options` go to SelfAttention."""

    def __init__(self, shape: Shape, index: int, build: Build, *, norm: Callable[[], Any], **options: Any) -> None:
        super().__init__()
        self.input_layernorm = norm()
        self.self_attn = SelfAttention(shape, index, build, **options)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        self.mlp = GatedMLP(shape, build)
        self.post_feedforward_layernorm = norm()

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, turn: Turn, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of DecoderLayer."""
        hidden, residual = add_norm(self.input_layernorm, hidden, residual)
        hidden = self.post_attention_layernorm(self.self_attn(hidden, turn, batch))
        hidden, residual = self.pre_feedforward_layernorm.add(hidden, residual)
        return self.post_feedforward_layernorm(self.mlp(hidden)), residual


class ParallelLayer(nn.Module):
    """Attention and MLP of the same input, side by side; `options` go to SelfAttention.

    Args:
        norm: makes the norms.
        own_norm: the MLP has a norm of its own.
    """

    def __init__(
        self,
        shape: Shape,
        index: int,
        build: Build,
        *,
        mlp: nn.Module,
        norm: Callable[[], Any],
        own_norm: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        self.input_layernorm = norm()
        self.mlp_layernorm = norm() if own_norm else None
        self.self_attn = SelfAttention(shape, index, build, **options)
        self.mlp = mlp

    def forward(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, turn: Turn, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of DecoderLayer."""
        hidden, residual = add_norm(self.input_layernorm, hidden, residual)
        other = hidden if self.mlp_layernorm is None else self.mlp_layernorm(residual)
        return self.self_attn(hidden, turn, batch) + self.mlp(other), residual


def add_norm(norm: Norm, hidden: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm before a layer: of the last layer's output and the sum before it, or of an embedding."""
    return (norm(hidden), hidden) if residual is None else norm.add(hidden, residual)


class Decoder(nn.Module):
    """Embedding, layers, last norm.

    Args:
        layer: makes the family's layer of an index.
        ropes: rotary embeddings; one, unless layers differ in it.
        rope_of: which of them, by layer; None is the first for all.
        norm: makes the last norm; None is RMSNorm.
        embedding_scale: what embeddings are multiplied by.
    """

    def __init__(
        self,
        shape: Shape,
        build: Build,
        layer: Callable[[int], nn.Module],
        ropes: tuple[RotaryEmbedding, ...],
        *,
        rope_of: tuple[int, ...] | None = None,
        norm: Callable[[], Any] | None = None,
        embedding_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.embed_tokens = Embedding(shape.vocab_size, shape.hidden_size, build, scale=embedding_scale)
        self.ropes = nn.ModuleList(ropes)
        self.rope_of = rope_of or (0,) * shape.num_layers
        self.layers = nn.ModuleList(layer(index) for index in range(shape.num_layers))
        self.norm = norm() if norm else RMSNorm(shape.hidden_size, shape.norm_eps, build)

    def forward(self, batch: Batch) -> torch.Tensor:  # [tokens, hidden]
        hidden, residual = self.embed_tokens(batch.input_ids), None
        for places, vectors in batch.inserts:
            hidden = hidden.index_copy(0, places, vectors)
        turns = [rope(batch.positions) for rope in self.ropes]
        for layer, rope in zip(self.layers, self.rope_of, strict=True):
            hidden, residual = layer(hidden, residual, turns[rope], batch)
        return self.norm.add(hidden, residual)[0]


class CausalLM(nn.Module):
    """A decoder and the head over its vocabulary: what the runner calls.

    Args:
        head_bias: the head has one.
        logits_cap: logits x become cap * tanh(x / cap).
    """

    launched_only = False
    """Steps may be captured, on a GPU."""

    def __init__(
        self,
        shape: Shape,
        build: Build,
        decoder: Decoder,
        *,
        head_bias: bool = False,
        logits_cap: float | None = None,
    ) -> None:
        super().__init__()
        self.model = decoder
        self.tied = shape.tied
        self.logits_cap = logits_cap
        if shape.tied:
            self.lm_head: nn.Module = TiedHead(self.model.embed_tokens, build)
        else:
            self.lm_head = Linear(shape.hidden_size, (shape.vocab_size,), build, bias=head_bias)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states after the last norm: [tokens, hidden]."""
        return self.model(batch)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, hidden] -> [n, vocab], in the format of the activations."""
        logits = self.lm_head(hidden)
        if self.logits_cap is None:
            return logits
        return torch.tanh(logits / self.logits_cap) * self.logits_cap

    @property
    def routes(self) -> bool:
        """Whether what a token goes through depends on the token."""
        return any(isinstance(module, Experts) for module in self.modules())

    def kv_specs(self) -> tuple[KVSpec, ...]:
        """What each layer keeps per token, in the order of `batch.kv`."""
        return tuple(layer.self_attn.attention.kv_spec for layer in self.model.layers)
