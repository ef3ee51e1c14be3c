"""Linear: x @ weight.T + bias, several projections of one input fused into one product."""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.layers.build import Build
from quire.worker.quantization.protocol import Scheme
from quire.worker.quantization.stored import Later


class Linear(nn.Module):
    """A matrix, or several that share their input, one below the other.

    It only holds the facts; its scheme makes the parameters, finishes them after loading and multiplies.

    Args:
        in_features: width of the input.
        out_parts: width of each fused output; a plain projection has one.
        cut: how several devices would share it: 0 by outputs (each its heads), 1 by inputs (sums follow).
        is_gated: it is a gate and an up projection, which `gated` multiplies together.
        order: the checkpoint's outputs come in another order: ours are its `order[0]`, `order[1]`, ...
    """

    def __init__(
        self,
        in_features: int,
        out_parts: tuple[int, ...],
        build: Build,
        *,
        bias: bool = False,
        cut: int = 0,
        is_gated: bool = False,
        order: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_parts = out_parts
        self.has_bias = bias
        self.cut = cut
        self.is_gated = is_gated
        self.dtype = build.dtype
        self.device = build.device
        self.kernels = build.kernels
        self.order = order
        self.settle(build.scheme)

    def settle(self, scheme: Scheme) -> None:
        """Take this scheme; before anything is loaded."""
        self._scheme = scheme
        self.is_settled = not isinstance(scheme, Later)
        scheme.params(self)

    def finish(self) -> None:
        """Called by the loader when the parameters are filled."""
        if self.order is not None:
            for param in self.parameters(recurse=False):
                param.copy_(param[self.order])
        self._scheme.finish(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [..., in] -> [..., sum(out_parts)]
        return self._scheme.apply(self, x)

    def gated(self, x: torch.Tensor, kind: str) -> torch.Tensor:  # [..., in] -> [..., sum(out_parts) / 2]
        """act(gate) * up, of a gate and an up projection that are fused into this one."""
        return self._scheme.apply_gated(self, x, kind)
