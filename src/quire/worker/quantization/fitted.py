"""Quantizing a plain checkpoint while it loads: a layer is fitted as soon as it is read, without any data.

    awq, gptq       whole numbers of 4 bits in groups of 128, scales and zeros by search and least squares
    int8            whole numbers of 8 bits, a scale per output (GPUs; `int8.py` is for CPUs)
    fp8             floats of 8 bits, a scale per output
    bitsandbytes    nf4, a scale per 64 weights
    squeezellm      a table of 16 per output, by k-means

What makers measure on data (act-order, salient channels, sensitivities) is not there; errors are those of `error_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from quire.worker.kernels.weights import (
    AnyWeights,
    FloatWeights,
    GroupWeights,
    TableWeights,
    fitting_group,
    pack_halves,
)
from quire.worker.quantization.pieces import FLOATS, Piece, Read

GROUP = 128
BLOCK = 64
SHRUNK = (1.0, 0.9)
"""Parts of a group's range that are tried: what lies outside is cut off, the rest gets finer steps."""
ROUNDS = 3
"""Of least squares after that."""
CHUNK = {"cpu": 1 << 19, "cuda": 1 << 25}
"""Weights that are fitted at a time: on a CPU, what its caches hold."""
LARGEST_FP8 = 448.0
SMALLEST_HALF = 6.2e-5
"""Scales below this lose digits as 16-bit floats."""
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values of nf4 (Dettmers et al. 2023)."""
LLOYD = 12
"""Rounds of k-means."""


def int4(weight: torch.Tensor, group: int = GROUP) -> GroupWeights:
    """Groups of whole numbers 0..15 with a scale and a zero that need not be whole."""
    inputs = weight.shape[1]
    group = fitting_group(inputs, group)
    parts = [_fit_groups(part, group) for part in weight.split(_lines(weight))]
    values, scales, zeros = (torch.cat(made) for made in zip(*parts, strict=True))
    return GroupWeights.make(values, scales, zeros, bits=4, group=group)


def _fit_groups(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 values [outs, inputs], scales and zeros [outs, groups]."""
    w = weight.float().reshape(len(weight), -1, group)
    low, high = w.amin(2), w.amax(2)
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for part in SHRUNK:
        best, scales, zeros = _better(w, *_range(low * part, high * part), best, scales, zeros)
    for _ in range(ROUNDS):
        best, scales, zeros = _better(w, *_least_squares(w, scales, zeros), best, scales, zeros)
    exact = torch.float16 if bool((scales.abs() >= SMALLEST_HALF).all()) else torch.float32
    scales, zeros = scales.to(exact), zeros.to(exact)
    values = _rounded(w, scales.float(), zeros.float()).to(torch.uint8).flatten(1)
    return values, scales, zeros


def _range(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of which 0 is the lowest value, 15 the highest; of equal values 1 is the value."""
    scales = (high - low) / 15
    flat = scales <= 1e-30
    scales = torch.where(flat, torch.where(low == 0, 1.0, low), scales)
    return scales, torch.where(flat, 0.0, -low / scales)


def _rounded(w: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    return (w / scales[..., None] + zeros[..., None]).round_().clamp_(0, 15)


def _better(
    w: torch.Tensor, new_scales: torch.Tensor, new_zeros: torch.Tensor,
    best: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Take the new ones where the squared error is smaller."""
    q = _rounded(w, new_scales, new_zeros)
    error = q.sub_(new_zeros[..., None]).mul_(new_scales[..., None]).sub_(w).square_().sum(2)
    wins = error < best
    return torch.minimum(error, best), torch.where(wins, new_scales, scales), torch.where(wins, new_zeros, zeros)


def _least_squares(w: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The line through (q, w) with the least squared error, for the q of these scales and zeros."""
    q = _rounded(w, scales, zeros)
    mean_q, mean_w = q.mean(2), w.mean(2)
    q -= mean_q[..., None]
    slope = (q * w).sum(2) / q.square_().sum(2).clamp_(min=1e-30)
    good = slope.abs() > 1e-30
    slope = torch.where(good, slope, scales)
    return slope, torch.where(good, mean_q - mean_w / slope, zeros)


def int8(weight: torch.Tensor) -> GroupWeights:
    """A scale per output; 128 is zero."""
    top = weight.float().abs().amax(1, keepdim=True)
    inverse = torch.where(top > 0, 127 / top, 0)
    values = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for at in range(0, len(weight), step := _lines(weight)):
        end = at + step
        values[at:end] = (weight[at:end].float() * inverse[at:end]).round_().add_(128).to(torch.uint8)
    return GroupWeights.make(values, top / 127, None, bits=8, group=weight.shape[1])


def fp8(weight: torch.Tensor) -> FloatWeights:
    """A scale per output: its largest weight becomes the largest number."""
    outs, inputs = weight.shape
    scales = weight.float().abs().amax(1, keepdim=True).clamp_(min=1e-12) / LARGEST_FP8
    q = torch.empty(outs, inputs, dtype=torch.float8_e4m3fn, device=weight.device)
    for at in range(0, outs, step := _lines(weight)):
        q[at : at + step] = (weight[at : at + step].float() / scales[at : at + step]).to(q.dtype)
    return FloatWeights(q, scales, 1, inputs)


def nf4(weight: torch.Tensor) -> TableWeights:
    """The nearest of 16 values that lie as those of a normal law do."""
    inputs = weight.shape[1]
    block = fitting_group(inputs, BLOCK)
    table = torch.tensor(NF4, device=weight.device)
    between = (table[1:] + table[:-1]) / 2
    packed, scales = [], []
    for part in weight.split(_lines(weight)):
        w = part.float().reshape(len(part), -1, block)
        top = w.abs().amax(2).clamp_(min=1e-30)
        places = torch.bucketize((w / top[..., None]).flatten(1), between)
        packed.append(pack_halves(places.to(torch.uint8)))
        scales.append(top)
    return TableWeights(torch.cat(packed), table[None], torch.cat(scales), block, inputs)


def tables(weight: torch.Tensor) -> TableWeights:
    """16 values for every output, by Lloyd's rounds on sorted weights: sums of a stretch are differences of sums."""
    inputs = weight.shape[1]
    packed, found = [], []
    for part in weight.split(_lines(weight)):
        w = part.float()
        ordered = w.sort(1).values
        sums = torch.nn.functional.pad(ordered.double().cumsum(1), (1, 0))
        table = ordered.gather(1, _spread_places(ordered)).double()
        for _ in range(LLOYD):
            between = (table[:, 1:] + table[:, :-1]) / 2
            ends = torch.searchsorted(ordered, between.float().contiguous())
            ends = torch.nn.functional.pad(torch.nn.functional.pad(ends, (1, 0)), (0, 1), value=inputs)
            counts = ends.diff(dim=1)
            means = sums.gather(1, ends).diff(dim=1) / counts.clamp(min=1)
            table = torch.where(counts > 0, means, table).sort(1).values
        between = ((table[:, 1:] + table[:, :-1]) / 2).float().contiguous()
        packed.append(pack_halves(torch.searchsorted(between, w.contiguous()).to(torch.uint8)))
        found.append(table.float())
    return TableWeights(torch.cat(packed), torch.cat(found), None, inputs, inputs)


def _spread_places(ordered: torch.Tensor) -> torch.Tensor:
    """Where 16 values begin: as dense as the cube root of the weights is, which is best for many values (Bennett 1948);
    between neighbours that density is one over their distance."""
    steps = ordered.diff(dim=1).double().pow(2 / 3).cumsum(1)
    wanted = (torch.arange(16, device=ordered.device) + 0.5) / 16 * steps[:, -1:]
    return torch.searchsorted(steps, wanted).clamp_(max=ordered.shape[1] - 1)


def _lines(weight: torch.Tensor) -> int:
    """Outputs that are fitted at a time."""
    return max(1, CHUNK[weight.device.type] // weight.shape[1])


def error_of(made: AnyWeights, weight: torch.Tensor) -> float:
    """Norm of what quantizing changed, as a share of the matrix's."""
    return float((made.dense(torch.float32) - weight.float()).norm() / weight.float().norm())


@dataclass(frozen=True, slots=True)
class Fitted:
    """A module that is stored as it is, and kept in another form."""

    name: str
    fit: Callable[[torch.Tensor], AnyWeights]
    marker = ("weight", FLOATS)

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        return {"weight": Piece(lambda outs, inputs: (outs, inputs), FLOATS)}

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        return self.fit(read["weight"])


@dataclass(frozen=True, slots=True)
class FittedFormats:
    """Every layer but the head; see format.Formats."""

    usual: Fitted

    @property
    def summary(self) -> str:
        """See Formats."""
        return self.usual.name

    def of(self, module: str) -> Fitted:
        """See Formats."""
        return self.usual

    def head(self) -> bool:
        """See Formats."""
        return False


FOUR_BITS = "4 bits in groups of 128, whose scales and zeros are searched, without any data"
FITS: dict[str, Fitted] = {
    "awq": Fitted(FOUR_BITS, int4),
    "gptq": Fitted(FOUR_BITS, int4),
    "int8": Fitted("8 bits, a scale per output", int8),
    "fp8": Fitted("fp8, a scale per output", fp8),
    "bitsandbytes": Fitted("nf4, a scale per 64 weights", nf4),
    "squeezellm": Fitted("4 bits, a table of 16 per output", tables),
}
"""What --quantization makes of a plain checkpoint."""
