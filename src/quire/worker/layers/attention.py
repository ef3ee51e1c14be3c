"""Attention: the place of one layer in the paged cache. The work is the backend's."""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.attention.protocol import AttentionSpec, HeadNorms, KVSpec, Turn
from quire.worker.batch import Batch
from quire.worker.layers.build import Build


class Attention(nn.Module):
    """Args:
    spec: heads, scale, window.
    index: which of `batch.kv` is this layer's.
    """

    def __init__(self, spec: AttentionSpec, index: int, build: Build) -> None:
        super().__init__()
        self.spec = spec
        self.index = index
        self.kv_spec = KVSpec(spec.num_kv_heads, spec.head_dim, build.dtype)
        self._backend = build.backend
        self._backend.add_layer(spec)

    def forward(
        self,
        qkv: torch.Tensor,  # [tokens, (num_heads + 2 * num_kv_heads) * head_dim]
        batch: Batch,
        *,
        norms: HeadNorms | None = None,
        turn: Turn | None = None,
    ) -> torch.Tensor:  # [tokens, num_heads * head_dim]
        kv = batch.kv[self.index]
        q, k, v = self._backend.store(qkv, norms, turn, kv, batch, self.spec)
        return self._backend.attend(q, k, v, kv, batch, self.spec)
