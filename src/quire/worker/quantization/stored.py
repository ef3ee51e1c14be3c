"""Layers whose weights are made of pieces: read, brought into a form that kernels know, multiplied there.

    q_proj: pieces ── format ──► weights ─┐
    k_proj: pieces ── format ──► weights ─┼─► one matrix where they agree, else several ── kernels.keep ──► kept
    v_proj: pieces ── format ──► weights ─┘

The parts of a fused layer may differ (one is excluded, or has more bits): they are multiplied one by one then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quire.worker.kernels.weights import AnyWeights
from quire.worker.quantization.format import Format, Plain
from quire.worker.quantization.pieces import FLOATS, Piece, Pieces
from quire.worker.quantization.protocol import Shard, parameter

PLAIN = Plain()


class Later:
    """A layer whose scheme is chosen when the whole model is there, by its name."""

    def params(self, layer: nn.Module) -> None:
        """None yet."""

    def finish(self, layer: nn.Module) -> None:
        """Never called."""
        raise AssertionError("a layer without a scheme")

    def apply(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Never called."""
        raise AssertionError("a layer without a scheme")

    def apply_gated(self, layer: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        """Never called."""
        raise AssertionError("a layer without a scheme")


class Stored:
    """See protocol.Scheme.

    Args:
        formats: of every part of the layer; None is a part that is not quantized.
    """

    def __init__(self, formats: tuple[Format | None, ...]) -> None:
        self._formats: tuple[Format, ...] = tuple(found or PLAIN for found in formats)

    def params(self, layer: nn.Module) -> None:
        """Only what is not of the formats is a parameter from the start."""
        layer.bias = None
        if layer.has_bias:
            shard = Shard(0, layer.out_parts)
            layer.bias = parameter((sum(layer.out_parts),), dtype=layer.dtype, device=layer.device, shard=shard)
        wanted = [self._wanted(layer, found) for found in self._formats]
        alike = all(found == self._formats[0] for found in self._formats)
        whole = wanted[0] if alike else None
        layer.pieces = Pieces(wanted, whole, layer.out_parts, layer.in_features, layer.device)
        layer.kept = ()

    def finish(self, layer: nn.Module) -> None:
        """Make the weights, and drop the pieces."""
        pieces, layer.pieces = layer.pieces, None
        parts = sorted(pieces.read, key=lambda part: -1 if part is None else part)
        if not layer.has_bias:
            layer.bias = _own_bias(pieces, parts, layer)
        made: list[AnyWeights] = []
        for part in parts:
            found = self._formats[part or 0]
            weights = found.weights(pieces.read.pop(part), pieces.outs(part), layer.in_features, layer.dtype)
            made.append(weights)
        made = joined(made)
        layer.reorder = None
        if layer.order is not None:
            order = layer.order.to(layer.device)
            made, layer.reorder = ([made[0].rows(order)], None) if len(made) == 1 else (made, order)
            layer.bias = layer.bias if layer.has_bias or layer.bias is None else layer.bias[order]
        experts = getattr(layer, "num", 0)
        if experts and len(made) > 1:  # each expert's alone, which only dense ones can be
            layer.kept = tuple(made)
            hold(layer, layer.kept)
            return
        how = {"gated": layer.is_gated and len(made) == 1, "experts": experts}
        layer.kept = tuple(layer.kernels.keep(weights, **how) for weights in made)
        hold(layer, layer.kept)

    def apply(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """See Scheme."""
        if len(layer.kept) == 1:
            return layer.kernels.product(x, layer.kept[0], layer.bias)
        y = torch.cat([layer.kernels.product(x, kept, None) for kept in layer.kept], dim=-1)
        if layer.reorder is not None:
            y = y[..., layer.reorder]
        return y if layer.bias is None else y + layer.bias

    def apply_gated(self, layer: nn.Module, x: torch.Tensor, kind: str) -> torch.Tensor:
        """See Scheme."""
        if len(layer.kept) == 1:
            return layer.kernels.gated_product(x, layer.kept[0], layer.bias, kind)
        return layer.kernels.gated(self.apply(layer, x), kind)

    def _wanted(self, layer: nn.Module, found: Format) -> dict[str, Piece]:
        wanted = found.pieces()
        if not layer.has_bias:  # some makers store zeros for models that have none
            wanted["bias"] = Piece(lambda outs, inputs: (outs,), FLOATS, optional=True)
        return wanted


def joined(weights: list[AnyWeights]) -> list[AnyWeights]:
    """One matrix below the other, where all agree."""
    first = weights[0]
    if len(weights) > 1 and all(first.joins(other) for other in weights[1:]):
        return [type(first).cat(weights)]  # type: ignore[arg-type]
    return weights


def hold(layer: nn.Module, kept: tuple[Any, ...]) -> None:
    """Let the layer count what its weights hold."""
    for index, tensor in enumerate(tensor for one in kept for tensor in one.tensors()):
        layer.register_parameter(f"kept_{index}", nn.Parameter(tensor, requires_grad=False))


def _own_bias(pieces: Pieces, parts: list[int | None], layer: nn.Module) -> torch.Tensor | None:
    """What checkpoints bring though the model has none; zeros are no bias."""
    found = [pieces.read[part].get("bias") for part in parts]
    if all(bias is None or not bool(bias.any()) for bias in found):
        return None
    zeros = (torch.zeros(pieces.outs(part), dtype=layer.dtype, device=layer.device) for part in parts)
    return torch.cat([zero if bias is None else bias.to(layer.dtype) for bias, zero in zip(found, zeros, strict=True)])
