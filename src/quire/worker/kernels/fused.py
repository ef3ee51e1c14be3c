"""The GPU's kernels: Triton, and cuBLAS where it is the faster one."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.worker.kernels import activation, norm, rope


class TritonKernels:
    """See `protocol.Kernels`."""

    name = "triton"

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """One matrix product."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """One program per line."""
        return norm.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum takes the place of `residual`."""
        return norm.add_rms_norm(x, residual, weight, eps)

    def gated(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """One pass."""
        return activation.gated(x, kind)

    def turns(
        self, positions: torch.Tensor, frequency: torch.Tensor, scale: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One pass."""
        return rope.turns(positions, frequency, scale, dtype)
