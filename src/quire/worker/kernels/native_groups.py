"""Weights of 4 and 8 bits in groups for the C++ kernels: their panels (see `cpp/groups.cpp`) and the call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from quire.worker.kernels.native_jobs import Call, Groups
from quire.worker.kernels.weights import GroupWeights

PANEL = 32


class Library(Protocol):
    """What this needs of `native.NativeLibrary`."""

    fast_int8: bool

    def advise(self, tensor: torch.Tensor) -> None:
        """Large pages."""

    def call(self, call: Call) -> None:
        """Make a call."""


@dataclass(frozen=True, slots=True)
class PackedGroups:
    """In panels. order: int32, which input a column multiplies; layout 1 has gate and up side by side."""

    panels: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    order: torch.Tensor | None
    outs: int
    inputs: int
    group: int
    bits: int
    layout: int
    is_job = True
    """Its product is one call of the library."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it holds."""
        held = (self.panels, self.scales, self.zeros, self.order)
        return tuple(tensor for tensor in held if tensor is not None)


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """One for every expert."""

    experts: tuple[PackedGroups, ...]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What they hold."""
        return tuple(tensor for one in self.experts for tensor in one.tensors())


def keep(library: Library, weights: Any, *, gated: bool, experts: int) -> PackedGroups | PackedExperts | None:
    """Panels; None: these weights stay as they are."""
    if not isinstance(weights, GroupWeights) or not library.fast_int8 or not packed_group(weights):
        return None
    if not experts:
        return pack(library, weights, gated=gated)
    size = weights.outs // experts
    each = (weights.rows(torch.arange(at, at + size)) for at in range(0, weights.outs, size))
    return PackedExperts(tuple(pack(library, one, gated=gated) for one in each))


def packed_group(weights: GroupWeights) -> int:
    """Inputs of a group as the kernels take them: 16 to 128 that divide the group and the inputs; 0 is none."""
    if weights.inputs % weights.group or weights.inputs % 8:
        return 0
    return next((size for size in (128, 64, 32, 16) if weights.group % size == 0), 0)


def pack(library: Library, weights: GroupWeights, *, gated: bool) -> PackedGroups:
    """Panels of weights that `packed_group` has a size for. gated: the upper half is gate."""
    outs, inputs, bits = weights.outs, weights.inputs, weights.bits
    group = packed_group(weights)
    layout = int(gated and outs % 32 == 0)
    lines = _lines(outs, layout)
    values = _padded(weights.values(), lines).view(-1, PANEL, inputs // 4, 4)
    if bits == 4:
        values = values.view(-1, PANEL, inputs // 8, 2, 4)
        values = values[:, :, :, 0] | values[:, :, :, 1] << 4
    panels = torch.empty(values.numel(), dtype=torch.uint8)
    library.advise(panels)
    panels.view(len(values), -1, PANEL, 4).copy_(values.permute(0, 2, 1, 3))
    each = weights.group // group

    def by_group(numbers: torch.Tensor) -> torch.Tensor:
        wide = _padded(numbers.float(), lines).repeat_interleave(each, 1)
        return wide.view(-1, PANEL, inputs // group).transpose(1, 2).contiguous()

    zeros = None if weights.zeros is None else by_group(weights.zeros)
    order = None if weights.order is None else weights.order.int().contiguous()
    return PackedGroups(panels, by_group(weights.scales), zeros, order, outs, inputs, group, bits, layout)


def product(
    library: Library, x: torch.Tensor, weight: PackedGroups, bias: torch.Tensor | None, *, gate: bool = False
) -> torch.Tensor:
    """x [..., inputs], float32 or bfloat16, to [..., outs]; `gate` gives silu(gate) * up, if the layout is 1."""
    x = x.contiguous()
    out = torch.empty((*x.shape[:-1], weight.outs >> gate), dtype=x.dtype)
    tensors = (x, weight.panels, weight.scales, weight.zeros, weight.order, bias, out)
    job = Groups(
        *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
        x.numel() // weight.inputs,
        weight.inputs,
        weight.outs,
        weight.group,
        weight.layout,
        gate,
        weight.bits,
    )
    library.call(Call("linear_groups", job, int(x.dtype == torch.float32)))
    return out


def _lines(outs: int, layout: int) -> torch.Tensor:
    """Which output each column of the panels is; -1 is padding."""
    if layout:
        half = torch.arange(outs // 2).view(-1, 16)
        return torch.cat((half, half + outs // 2), dim=1).flatten()
    lines = torch.arange(-(-outs // PANEL) * PANEL)
    return torch.where(lines < outs, lines, -1)


def _padded(values: torch.Tensor, lines: torch.Tensor) -> torch.Tensor:
    """These lines; zeros for those of padding."""
    found = values[lines.clamp(min=0)]
    found[lines < 0] = 0
    return found
