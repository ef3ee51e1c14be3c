"""What an attention backend is. One file per backend beside this one; `select.py` holds the one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from quire.worker.batch import Batch

GraphSupport = Literal["never", "decode", "uniform", "any"]
"""Which steps a backend can be captured for: none | one token per row | the same small number per row | all."""


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """The fixed facts of one attention layer. `window` is the number of positions seen, itself included."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class KVSpec:
    """What one layer keeps per token. Layers of equal spec form a group."""

    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """K and V of one token in this layer."""
        return 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize


HeadNorms = tuple[torch.Tensor, torch.Tensor, float]
"""RMSNorm of each head of q and k: both weights [head_dim], eps."""

Turn = tuple[torch.Tensor, torch.Tensor]
"""cos and sin of each token [tokens, head_dim / 2]."""


class AttentionBackend(Protocol):
    """Paged attention. `name` is what --attention-backend would say."""

    name: str
    graphs: GraphSupport

    def add_layer(self, spec: AttentionSpec) -> None:
        """Called while the model is built, for each layer that will attend."""

    def kv_shape(self, spec: KVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """Shape of one layer's KV tensor."""

    def plan(self, batch: Batch) -> Any:
        """Once per step, before the first layer: whatever all layers share. Becomes `batch.attention_plan`."""

    def store(
        self,
        qkv: torch.Tensor,  # [tokens, (num_heads + 2 * num_kv_heads) * head_dim]
        norms: HeadNorms | None,
        turn: Turn | None,
        kv: torch.Tensor,  # kv_shape(...)
        batch: Batch,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Normalise and turn q and k, and write k and v into the cache at `batch.slots`.

        Returns q, k, v [tokens, heads, head_dim]; k and v are as good as the cache for a backend that wants them.
        """

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:  # [tokens, num_heads * head_dim]
        """After `store`: causally over each request's own tokens."""
