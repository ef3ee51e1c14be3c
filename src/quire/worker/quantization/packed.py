"""Unquantized weights in the layout of the C++ kernels, for CPUs with bf16 dot products; others go to oneDNN."""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.kernels.native import NativeLibrary
from quire.worker.quantization.none import Unquantized


class PackedWeights(Unquantized):
    """`weight` as panels of 32 outputs.

    Args:
        library: the kernels.
    """

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library

    def params(self, layer: nn.Module) -> None:
        super().params(layer)
        layer.packed = None

    def finish(self, layer: nn.Module) -> None:
        layer.packed = None
        if layer.dtype != torch.bfloat16 or not self.library.fast_bf16 or layer.in_features % 2:
            super().finish(layer)
            return
        layer.packed = self.library.pack(layer.weight.detach(), gated=layer.is_gated)
        layer.weight = nn.Parameter(layer.packed.panels, requires_grad=False)

    def apply(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if layer.packed is None:
            return super().apply(layer, x)
        return self.library.linear(x.contiguous(), layer.packed, layer.bias)

    def apply_gated(self, layer: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        if layer.packed is None:
            return super().apply_gated(layer, x, kind)
        if kind == "silu" and layer.packed.layout == 1:
            return self.library.linear(x.contiguous(), layer.packed, layer.bias, gate=True)
        return layer.kernels.gated(self.apply(layer, x), kind)
