"""Norms, alone or with the residual sum before them."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from quire.worker.layers.build import Build
from quire.worker.quantization.protocol import parameter


class Norm(Protocol):
    """What layers ask of a norm."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., size] -> [..., size]."""

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual): the step between two blocks. `residual` is used up."""


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019), over the last dimension, inside in float32.

    Args:
        from_one: the checkpoint holds weight - 1, as Gemma's do; the sum is kept in float32 where kernels read that.
    """

    def __init__(self, size: int, eps: float, build: Build, *, from_one: bool = False) -> None:
        super().__init__()
        dtype = torch.float32 if from_one and build.kernels.wide_norms else build.dtype
        self.weight = parameter((size,), dtype=dtype, device=build.device)
        self.eps = eps
        self._kernels = build.kernels
        self._from_one = from_one

    def finish(self) -> None:
        """Called by the loader when the weight is filled."""
        if self._from_one:
            self.weight += 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Norm`."""
        return self._kernels.add_rms_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    """weight * (x - mean) / sqrt(variance + eps) + bias (Ba et al. 2016), over the last dimension."""

    def __init__(self, size: int, eps: float, build: Build) -> None:
        super().__init__()
        self.weight = parameter((size,), dtype=build.dtype, device=build.device)
        self.bias = parameter((size,), dtype=build.dtype, device=build.device)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Norm`."""
        total = x + residual
        return self(total), total
