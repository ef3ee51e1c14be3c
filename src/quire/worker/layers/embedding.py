"""Token embedding, and the output head that shares its matrix."""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.layers.build import Build
from quire.worker.quantization.protocol import Scheme, Shard, parameter


class Embedding(nn.Module):
    """weight [vocab, hidden]; what is looked up is multiplied by `scale`, which is rounded as the weights are."""

    def __init__(self, vocab_size: int, hidden_size: int, build: Build, *, scale: float | None = None) -> None:
        super().__init__()
        self.scale = None if scale is None else float(torch.tensor(scale).to(build.dtype))
        self.weight = parameter(
            (vocab_size, hidden_size), dtype=build.dtype, device=build.device, shard=Shard(0, (vocab_size,))
        )
        self._kernels = build.kernels

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # [tokens] -> [tokens, hidden]
        found = self._kernels.embed(input_ids, self.weight)
        return found if self.scale is None else found * self.scale


class TiedHead(nn.Module):
    """Logits by the embedding's own matrix: a linear layer, to its scheme, whose weight another has filled.

    It shares the storage, unless its scheme wants the matrix in another form to multiply by.
    """

    cut = 0
    has_bias = is_gated = False

    def __init__(self, embedding: Embedding, build: Build) -> None:
        super().__init__()
        vocab_size, self.in_features = embedding.weight.shape
        self.out_parts = (vocab_size,)
        self.dtype, self.device, self.kernels = build.dtype, build.device, build.kernels
        self.settle(build.scheme)
        self.weight = embedding.weight.detach()  # not a parameter: the loader fills the embedding's
        self.bias = None

    def settle(self, scheme: Scheme) -> None:
        """Take this scheme; before anything is loaded."""
        self._scheme = scheme

    def finish(self) -> None:
        """Called by the loader when the embedding is filled."""
        self._scheme.finish(self)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:  # [n, hidden] -> [n, vocab]
        return self._scheme.apply(self, hidden)
