"""RMSNorm (Zhang and Sennrich 2019), alone or with the residual sum before it."""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.layers.build import Build
from quire.worker.quantization.protocol import parameter


class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), over the last dimension, inside in float32."""

    def __init__(self, size: int, eps: float, build: Build) -> None:
        super().__init__()
        self.weight = parameter((size,), dtype=build.dtype, device=build.device)
        self.eps = eps
        self._kernels = build.kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., size] -> [..., size]
        return self._kernels.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual): the step between two blocks. `residual` is used up."""
        return self._kernels.add_rms_norm(x, residual, self.weight, self.eps)
