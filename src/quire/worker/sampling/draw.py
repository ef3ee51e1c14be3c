"""The draw: one token per row from its logits.

Noise is counter-based: one uniform number from (seed of the request, position of the new token), so a request gets
the same tokens in any batch, in any order, and again after it was preempted. It picks by inverse transform over the
vocabulary in two levels, so only one pass touches all of it:

    probabilities  [rows, groups, GROUP] → group masses → first group whose running mass exceeds u → token within it
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

GROUP = 256
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniform(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[rows] float64 in [0, 1), a function of (seed, position) alone: two rounds of SplitMix64 (Steele et al. 2014)."""
    return _shift_right(_mix(_mix(seeds) + positions * _GOLDEN), 11).double() * 2.0**-53


def draw(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Token ids [rows] int64, distributed as softmax(logits [rows, vocab]) over uniform noise [rows].

    Where no token is possible, or a logit is NaN, it is some token of the vocabulary: one request's contradictory
    wishes must not end the others'.
    """
    rows, vocab = logits.shape
    weights = (logits - logits.amax(dim=1, keepdim=True)).exp_()
    weights = F.pad(weights, (0, -vocab % GROUP)).view(rows, -1, GROUP)
    running = weights.sum(dim=2, dtype=torch.float64).cumsum(dim=1)  # [rows, groups]
    target = _below(noise * running[:, -1], running[:, -1])
    group = torch.searchsorted(running, target[:, None], right=True)  # first with running > target
    group.clamp_(max=running.shape[1] - 1)
    before = F.pad(running, (1, 0)).gather(1, group)
    inside = weights.gather(1, group[:, :, None].expand(-1, -1, GROUP))[:, 0].double().cumsum(dim=1)
    rest = _below(target - before[:, 0], inside[:, -1])
    token = group[:, 0] * GROUP + torch.searchsorted(inside, rest[:, None], right=True)[:, 0]
    return token.clamp_(max=vocab - 1)


def _below(value: torch.Tensor, bound: torch.Tensor) -> torch.Tensor:
    """The value, kept strictly below the bound against rounding: only tokens of non-zero weight can be drawn."""
    return torch.minimum(value, bound * (1 - 1e-12)).clamp_(min=0)


def _mix(z: torch.Tensor) -> torch.Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
