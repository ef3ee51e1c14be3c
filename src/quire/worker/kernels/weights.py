"""Quantized weights as kernels take them, whichever format a checkpoint had: a few kinds, each with its definition.

    GroupWeights   w = (q - zero) * scale           whole numbers, scale and zero per group of inputs   GPTQ, AWQ, int8
    FloatWeights   w = q * scale                    floats of 8 bits, a scale per tile                  FP8
    TableWeights   w = table[q] * scale + sparse    places in a table of 16                             nf4, SqueezeLLM
    PlainWeights   w = q                            a part that its checkpoint left as it was

All are [out, in]; their outputs can be chosen and put together, so projections that share their input become one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, Self

import torch

DENSE_BYTES = 64 << 20
"""Of float32 that `dense` has at one time beside its result."""


class Weights(Protocol):
    """One kind."""

    outs: int
    inputs: int

    def dense(self, dtype: torch.dtype, first: int = 0, end: int | None = None) -> torch.Tensor:
        """Outputs first .. end of the matrix, [end - first, in]."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What it holds."""


class _Kind:
    """What all kinds do the same way: `_lines` makes a stretch of the matrix in float32."""

    outs: int
    inputs: int

    def _lines(self, first: int, end: int) -> torch.Tensor:
        raise NotImplementedError

    def dense(self, dtype: torch.dtype, first: int = 0, end: int | None = None) -> torch.Tensor:
        """See Weights."""
        end = self.outs if end is None else end
        step = max(1, DENSE_BYTES // (4 * self.inputs))
        if end - first <= step:
            return self._lines(first, end).to(dtype)
        out = torch.empty(end - first, self.inputs, dtype=dtype, device=self.tensors()[0].device)
        for at in range(first, end, step):
            stop = min(end, at + step)
            out[at - first : stop - first] = self._lines(at, stop)
        return out

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """See Weights."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if isinstance(value, torch.Tensor))


@dataclass(frozen=True, slots=True)
class GroupWeights(_Kind):
    """w[n, k] = (q[n, k] - zeros[n, k // group]) * scales[n, k // group].

    Args:
        q: uint8; [outs, inputs / 2] of 4 bits, the even input in the lower half; [outs, inputs] of 8.
        scales: [outs, groups], in any float format.
        zeros: [outs, groups] in the format of the scales; None is 2 ** (bits - 1) everywhere.
        bits: 4 or 8; fewer are kept as 4.
        group: inputs of a group; the last one may be shorter.
        order: [inputs]; column j of q is input order[j], where the checkpoint sorted inputs into groups.
    """

    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    group: int
    inputs: int
    order: torch.Tensor | None = None

    @classmethod
    def make(
        cls,
        values: torch.Tensor,  # uint8 [outs, inputs], below 2 ** bits
        scales: torch.Tensor,
        zeros: torch.Tensor | None,
        *,
        bits: int,
        group: int,
        order: torch.Tensor | None = None,
    ) -> Self:
        """Pack them. Of 2 and 3 bits the middle, which `zeros=None` means, is another one: say it by `zeros`."""
        kept = 4 if bits <= 4 else 8
        inputs = values.shape[1]
        q = pack_halves(values) if kept == 4 else values.contiguous()
        return cls(q, scales.contiguous(), None if zeros is None else zeros.contiguous(), kept, group, inputs, order)

    @property
    def outs(self) -> int:  # type: ignore[override]
        """Lines of the matrix."""
        return self.q.shape[0]

    def values(self, first: int = 0, end: int | None = None) -> torch.Tensor:
        """uint8 [end - first, inputs]."""
        q = self.q[first:end]
        return unpack_halves(q, self.inputs) if self.bits == 4 else q

    def rows(self, index: torch.Tensor) -> Self:
        """The outputs of an index."""
        zeros = None if self.zeros is None else self.zeros[index]
        return replace(self, q=self.q[index], scales=self.scales[index], zeros=zeros)

    def joins(self, other: object) -> bool:
        """Whether `cat` takes both."""
        return (
            isinstance(other, GroupWeights)
            and (self.bits, self.group, self.inputs) == (other.bits, other.group, other.inputs)
            and self.scales.dtype == other.scales.dtype
            and (self.zeros is None) == (other.zeros is None)
            and _same(self.order, other.order)
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One below the other."""
        zeros = None if parts[0].zeros is None else torch.cat([p.zeros for p in parts])  # type: ignore[misc]
        return replace(
            parts[0], q=torch.cat([p.q for p in parts]), scales=torch.cat([p.scales for p in parts]), zeros=zeros
        )

    def _lines(self, first: int, end: int) -> torch.Tensor:
        values = self.values(first, end).float()
        scales = self.scales[first:end].float()
        zeros = 2.0 ** (self.bits - 1) if self.zeros is None else self.zeros[first:end].float()
        if self.inputs % self.group == 0:
            grouped = values.view(end - first, -1, self.group)
            grouped -= zeros if isinstance(zeros, float) else zeros[..., None]
            grouped *= scales[..., None]
        else:
            values -= zeros if isinstance(zeros, float) else _spread(zeros, self.group, self.inputs)
            values *= _spread(scales, self.group, self.inputs)
        if self.order is None:
            return values
        out = torch.empty_like(values)
        out[:, self.order] = values
        return out


@dataclass(frozen=True, slots=True)
class FloatWeights(_Kind):
    """w[n, k] = q[n, k] * scales[n // tile_outs, k // tile_inputs].

    Args:
        q: float8_e4m3fn [outs, inputs].
        scales: float32 [outs / tile_outs, inputs / tile_inputs], rounded up.
        input_scale: of the inputs, where the checkpoint measured one: a float32 number.
    """

    q: torch.Tensor
    scales: torch.Tensor
    tile_outs: int
    tile_inputs: int
    input_scale: torch.Tensor | None = None

    @property
    def outs(self) -> int:  # type: ignore[override]
        """Lines of the matrix."""
        return self.q.shape[0]

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Columns of the matrix."""
        return self.q.shape[1]

    @property
    def is_per_output(self) -> bool:
        """One scale per output."""
        return self.tile_outs == 1 and self.tile_inputs >= self.inputs

    def by_output(self) -> Self:
        """The same with scales for every output."""
        if self.tile_outs == 1:
            return self
        scales = self.scales.repeat_interleave(self.tile_outs, 0)[: self.outs]
        return replace(self, scales=scales.contiguous(), tile_outs=1)

    def rows(self, index: torch.Tensor) -> Self:
        """The outputs of an index."""
        mine = self.by_output()
        return replace(mine, q=mine.q.view(torch.uint8)[index].view(mine.q.dtype), scales=mine.scales[index])

    def joins(self, other: object) -> bool:
        """Whether `cat` takes both."""
        return isinstance(other, FloatWeights) and (self.inputs, self.tile_inputs) == (other.inputs, other.tile_inputs)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One below the other; tiles stay where they come out even. Inputs are measured alike: the larger scale."""
        tile = parts[0].tile_outs
        if any(part.tile_outs != tile or part.outs % tile for part in parts):
            parts = [part.by_output() for part in parts]
        measured = [part.input_scale for part in parts if part.input_scale is not None]
        q = torch.cat([part.q.view(torch.uint8) for part in parts]).view(parts[0].q.dtype)
        scale = torch.stack(measured).amax() if len(measured) == len(parts) else None
        return replace(parts[0], q=q, scales=torch.cat([part.scales for part in parts]), input_scale=scale)

    def _lines(self, first: int, end: int) -> torch.Tensor:
        wide = widened(self.q[first:end]).float()
        index = torch.arange(first, end, device=wide.device) // self.tile_outs
        scales = self.scales[index]
        return wide.mul_(scales if scales.shape[1] == 1 else _spread(scales, self.tile_inputs, self.inputs))


@dataclass(frozen=True, slots=True)
class TableWeights(_Kind):
    """w[n, k] = table[n, q[n, k]] * scales[n, k // block], and sparse values on top.

    Args:
        q: uint8 [outs, inputs / 2], the even input in the lower half.
        table: float32 [outs, 16], or [1, 16] for all.
        scales: float32 [outs, inputs / block], or None.
        places: int64 [sparse values], out * inputs + in of each, ascending; None is none.
        extra: float32, what is added there.
    """

    q: torch.Tensor
    table: torch.Tensor
    scales: torch.Tensor | None
    block: int
    inputs: int
    places: torch.Tensor | None = None
    extra: torch.Tensor | None = None

    @property
    def outs(self) -> int:  # type: ignore[override]
        """Lines of the matrix."""
        return self.q.shape[0]

    def rows(self, index: torch.Tensor) -> Self:
        """The outputs of an index."""
        table = self.table if len(self.table) == 1 else self.table[index]
        scales = None if self.scales is None else self.scales[index]
        places, extra = self.places, self.extra
        if places is not None and extra is not None:
            new = torch.empty_like(index).scatter_(0, index, torch.arange(len(index), device=index.device))
            moved = new[places // self.inputs] * self.inputs + places % self.inputs
            places, by = moved.sort()
            extra = extra[by]
        return replace(self, q=self.q[index], table=table, scales=scales, places=places, extra=extra)

    def joins(self, other: object) -> bool:
        """Whether `cat` takes both."""
        return (
            isinstance(other, TableWeights)
            and (self.block, self.inputs) == (other.block, other.inputs)
            and (self.scales is None) == (other.scales is None)
            and (len(self.table) > 1 or _same(self.table, other.table))
            and (len(self.table) == 1) == (len(other.table) == 1)
        )

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One below the other."""
        first = parts[0]
        table = first.table if len(first.table) == 1 else torch.cat([p.table for p in parts])
        scales = None if first.scales is None else torch.cat([p.scales for p in parts])  # type: ignore[misc]
        places, extra, above = [], [], 0
        for part in parts:
            if part.places is not None and part.extra is not None:
                places.append(part.places + above * part.inputs)
                extra.append(part.extra)
            above += part.outs
        sparse = {"places": torch.cat(places), "extra": torch.cat(extra)} if places else {}
        return replace(first, q=torch.cat([p.q for p in parts]), table=table, scales=scales, **sparse)

    def dense(self, dtype: torch.dtype, first: int = 0, end: int | None = None) -> torch.Tensor:
        """See Weights."""
        if self.places is None or self.extra is None:
            return _Kind.dense(self, dtype, first, end)
        out = _Kind.dense(self, torch.float32)  # sparse values belong to whole matrices: no size depends on a value
        out.view(-1).index_add_(0, self.places, self.extra)
        return out[first:end].to(dtype)

    def _lines(self, first: int, end: int) -> torch.Tensor:
        q = self.q[first:end]
        if len(self.table) == 1:  # both halves of a byte by one look-up
            both = torch.cartesian_prod(self.table[0], self.table[0]).flip(1)
            values = both.index_select(0, q.flatten().int()).view(end - first, -1)[:, : self.inputs].contiguous()
        else:
            values = self.table[first:end].gather(1, unpack_halves(q, self.inputs).long())
        if self.scales is not None:
            values.view(end - first, -1, self.block).mul_(self.scales[first:end, :, None])
        return values


@dataclass(frozen=True, slots=True)
class PlainWeights(_Kind):
    """q [outs, inputs] in the format of the activations."""

    q: torch.Tensor

    @property
    def outs(self) -> int:  # type: ignore[override]
        """Lines of the matrix."""
        return self.q.shape[0]

    @property
    def inputs(self) -> int:  # type: ignore[override]
        """Columns of the matrix."""
        return self.q.shape[1]

    def rows(self, index: torch.Tensor) -> Self:
        """The outputs of an index."""
        return replace(self, q=self.q[index])

    def joins(self, other: object) -> bool:
        """Whether `cat` takes both."""
        return isinstance(other, PlainWeights)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One below the other."""
        return cls(torch.cat([part.q for part in parts]))

    def dense(self, dtype: torch.dtype, first: int = 0, end: int | None = None) -> torch.Tensor:
        """See Weights."""
        return self.q[first:end].to(dtype)


AnyWeights = GroupWeights | FloatWeights | TableWeights | PlainWeights


def pack_halves(values: torch.Tensor) -> torch.Tensor:
    """uint8 [lines, columns] below 16 -> [lines, columns / 2]; the even column is the lower half."""
    if values.shape[1] % 2:
        values = torch.nn.functional.pad(values, (0, 1))
    return values[:, 0::2] | (values[:, 1::2] << 4)


def unpack_halves(packed: torch.Tensor, columns: int) -> torch.Tensor:
    """The reverse of pack_halves."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)[:, :columns]


def widened(q: torch.Tensor) -> torch.Tensor:
    """float8_e4m3fn in bfloat16, exactly. On a CPU by moving the digits to where bfloat16 has them, with an exponent
    that is 120 less: fifteen times as fast as torch's own, which goes one by one."""
    if q.device.type != "cpu":
        return q.bfloat16()
    digits = q.view(torch.int8).to(torch.int16)
    digits <<= 4
    digits &= -0x7801  # the sign was carried up through all of the upper byte
    return digits.view(torch.bfloat16) * 2.0**120


def fitting_group(inputs: int, wanted: int) -> int:
    """A group size that divides `inputs`: `wanted`, or the largest part of it that does and is 16 or more; else all."""
    size = math.gcd(inputs, wanted)
    return size if size >= 16 else inputs


def _spread(values: torch.Tensor, many: int, columns: int) -> torch.Tensor:
    return values.repeat_interleave(min(many, columns), 1)[:, :columns]


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)
