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

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., size] -> [..., size]
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(norm of x + residual, x + residual): the step between two blocks."""
        return add_rms_norm(x, residual, self.weight, self.eps)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., size] normalised; statistics in float32, result in x's format."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype).mul_(weight)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rms_norm(x + residual), x + residual)."""
    total = x + residual
    return rms_norm(total, weight, eps), total
