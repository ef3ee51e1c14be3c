"""Token embedding, and the output head that shares its matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from quire.worker.layers.build import Build
from quire.worker.quantization.protocol import Shard, parameter


class Embedding(nn.Module):
    """weight [vocab, hidden]."""

    def __init__(self, vocab_size: int, hidden_size: int, build: Build) -> None:
        super().__init__()
        self.weight = parameter(
            (vocab_size, hidden_size), dtype=build.dtype, device=build.device, shard=Shard(0, (vocab_size,))
        )

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # [tokens] -> [tokens, hidden]
        return F.embedding(input_ids, self.weight)


class TiedHead(nn.Module):
    """Logits by the embedding's own matrix: no parameter of its own, the same storage."""

    def __init__(self, embedding: Embedding, build: Build) -> None:
        super().__init__()
        self._kernels = build.kernels
        self._shared = (embedding,)  # in a tuple, so that it is not a submodule here as well

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # [n, hidden] -> [n, vocab]
        return self._kernels.linear(hidden, self._shared[0].weight, None)
