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


class AttentionBackend(Protocol):
    """Paged attention. `name` is what --attention-backend would say."""

    name: str
    graphs: GraphSupport

    def kv_shape(self, spec: KVSpec, num_blocks: int, block_size: int) -> tuple[int, ...]:
        """Shape of one layer's KV tensor."""

    def plan(self, batch: Batch) -> Any:
        """Once per step, before the first layer: whatever all layers share. Becomes `batch.attention_plan`."""

    def forward(
        self,
        q: torch.Tensor,  # [tokens, num_heads, head_dim]
        k: torch.Tensor,  # [tokens, num_kv_heads, head_dim]
        v: torch.Tensor,  # [tokens, num_kv_heads, head_dim]
        kv: torch.Tensor,  # kv_shape(...)
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:  # [tokens, num_heads * head_dim]
        """Write k and v into the cache at `batch.slots`, then attend causally over each request's own tokens."""
