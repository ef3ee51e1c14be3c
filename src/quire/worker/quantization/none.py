"""Unquantized weights, [out, in] in the number format of the activations."""

from __future__ import annotations

import torch
from torch import nn

from quire.worker.quantization.protocol import Shard, parameter

PACK_ROWS = 64
"""Rows of x for which a CPU's packed layout is chosen: a batch of decodes. Longer ones lose nothing by it."""


class Unquantized:
    """`weight` [out, in] and `bias` [out]; on a CPU `finish` packs the weight for oneDNN.

    Measured on 2 AMX cores, the four matrices of a 125M layer, 64 rows: bf16 1.2 ms plain, 0.6 ms packed.
    """

    def params(self, layer: nn.Module) -> None:
        out_features = sum(layer.out_parts)
        make = {"dtype": layer.dtype, "device": layer.device}
        shard = Shard(0, layer.out_parts) if layer.cut == 0 else Shard(1, (layer.in_features,))
        layer.weight = parameter((out_features, layer.in_features), shard=shard, **make)
        layer.bias = parameter((out_features,), shard=Shard(0, layer.out_parts), **make) if layer.has_bias else None

    def finish(self, layer: nn.Module) -> None:
        weight = layer.weight
        if weight.device.type != "cpu" or not _packable(weight.dtype):
            return
        # The plain copy goes as soon as its packed one is there, so the peak is one matrix more.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACK_ROWS)
        layer.weight = nn.Parameter(packed, requires_grad=False)

    def apply(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if layer.weight.is_mkldnn:
            return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "none", [], "")
        return layer.kernels.linear(x, layer.weight, layer.bias)

    def apply_gated(self, layer: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        if layer.weight.is_mkldnn:
            return layer.kernels.gated(self.apply(layer, x), kind)
        return layer.kernels.gated_linear(x, layer.weight, layer.bias, kind)


def _packable(dtype: torch.dtype) -> bool:
    """Whether this CPU has oneDNN kernels for packed weights of this format."""
    if not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32
