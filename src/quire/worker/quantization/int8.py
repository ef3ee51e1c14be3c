"""int8 weights and activations, made at load from any checkpoint, on CPUs: half the memory, twice the arithmetic.

    weight   one scale per output:  w ~ scale[out] * q[out, in]     |q| <= 127, symmetric
    x        one scale per token, chosen when it is multiplied      x ~ scale[token] * q[token, in]

A layer is quantized as soon as its tensors have been read, and its plain weight is dropped then: the model is never
whole in memory. Where the C++ kernels are missing, or the CPU has no int8 dot products, torch multiplies.
"""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.kernels.native import NativeLibrary
from quire.worker.quantization.none import Unquantized

MULTIPLE = 16
"""Of inputs: what the kernels quantize at once."""


class Int8Weights(Unquantized):
    """Args:
    library: the C++ kernels, None where there are none.
    """

    def __init__(self, library: NativeLibrary | None) -> None:
        self._library = library if library is not None and library.fast_int8 else None

    def params(self, layer: nn.Module) -> None:
        super().params(layer)
        layer.packed = layer.scales = None

    def finish(self, layer: nn.Module) -> None:
        plain = layer.weight.detach()
        if self._library is not None and layer.in_features % MULTIPLE == 0:
            layer.packed = self._library.pack(plain.contiguous(), gated=layer.is_gated, int8=True)
            layer.scales = layer.packed.scales
            layer.weight = nn.Parameter(layer.packed.panels, requires_grad=False)
            return
        layer.packed = None
        weight, layer.scales = quantize_rows(plain)
        layer.weight = nn.Parameter(weight, requires_grad=False)

    def apply(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if layer.packed is not None:
            return self._library.linear(x.contiguous(), layer.packed, layer.bias)  # type: ignore[union-attr]
        return _whole_numbers(layer, x)

    def apply_gated(self, layer: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        if layer.packed is not None and kind == "silu" and layer.packed.layout == 1:
            return self._library.linear(x.contiguous(), layer.packed, layer.bias, gate=True)  # type: ignore[union-attr]
        return layer.kernels.gated(self.apply(layer, x), kind)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [rows, columns] to int8 of the same shape and float32 scales [rows]: the largest of a row becomes 127."""
    wide = x.float()
    top = wide.abs().amax(dim=1, keepdim=True)
    inverse = torch.where(top > 0, 127 / top, 0)
    return (wide * inverse).round_().to(torch.int8), top[:, 0] / 127


def _whole_numbers(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The product in torch: whole numbers first, scales afterwards."""
    quantized, scales = quantize_rows(x.reshape(-1, layer.in_features))
    product = torch._int_mm(quantized, layer.weight.t()).float()
    product *= scales[:, None] * layer.scales
    if layer.bias is not None:
        product += layer.bias
    return product.to(x.dtype).view(*x.shape[:-1], -1)
