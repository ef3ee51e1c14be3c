"""Rotary position embedding (Su et al. 2021) and the ways it is stretched to longer contexts.

A head's two halves are the real and imaginary parts of dim / 2 numbers; position p turns number i by p * frequency[i]:

    (a, b) -> (a cos - b sin, b cos + a sin)        a = x[..., : dim / 2]   b = x[..., dim / 2 :]

A stretched kind only changes the frequencies, and YaRN also the length of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from quire.checkpoint import Fields, rope_fields
from quire.worker.layers.build import Build


class RotaryEmbedding(nn.Module):
    """cos and sin of a step's positions; computed once and used by every layer.

    Args:
        head_dim: size of a head, even.
        config: config.json; `rope_parameters`, or `rope_theta` and `rope_scaling`.
        theta: the family's base where the config names none.

    Raises:
        ConfigError: for a kind or value that is not known, naming the key.
    """

    def __init__(self, head_dim: int, config: Fields, build: Build, *, theta: float = 10_000.0) -> None:
        super().__init__()
        rope = rope_fields(config)
        kind = rope.text("rope_type")
        if kind not in FREQUENCIES:
            rope.fail("rope_type", f"must be one of {', '.join(sorted(FREQUENCIES))}", kind)
        if rope.number("partial_rotary_factor", 1.0) != 1.0:
            rope.fail("partial_rotary_factor", "must be 1 for this model", rope.values["partial_rotary_factor"])
        base = rope.number("rope_theta", theta, low=1.0 + 1e-6)
        positions = config.integer("max_position_embeddings")
        frequency, self.scale = FREQUENCIES[kind](_plain(head_dim, base), rope, base, positions)
        self.dtype = build.dtype
        self._kernels = build.kernels
        self.frequency = nn.Buffer(frequency.to(build.device), persistent=False)  # [head_dim / 2] float32

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [tokens] -> cos, sin [tokens, head_dim / 2]."""
        return self._kernels.turns(positions, self.frequency, self.scale, self.dtype)


Frequencies = tuple[torch.Tensor, float]


def _plain(head_dim: int, base: float) -> torch.Tensor:
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / base**exponent  # [head_dim / 2]


def _default(frequency: torch.Tensor, rope: Fields, base: float, positions: int) -> Frequencies:
    return frequency, 1.0


def _linear(frequency: torch.Tensor, rope: Fields, base: float, positions: int) -> Frequencies:
    """Position interpolation (Chen et al. 2023): all positions closer together."""
    return frequency / rope.number("factor", low=1.0), 1.0


def _llama3(frequency: torch.Tensor, rope: Fields, base: float, positions: int) -> Frequencies:
    """Llama 3.1: slow turns are stretched, fast ones left alone, those between blended.

    wave length   ... original / high | blend | original / low ...
    """
    factor = rope.number("factor", low=1.0)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not low < high:
        rope.fail("high_freq_factor", f"must be greater than low_freq_factor ({low:g})", high)
    original = rope.integer("original_max_position_embeddings", positions)
    turns = original * frequency / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / factor), 1.0


def _yarn(frequency: torch.Tensor, rope: Fields, base: float, positions: int) -> Frequencies:
    """YaRN (Peng et al. 2023): a ramp between stretched and plain frequencies, and sharper attention."""
    original = rope.integer("original_max_position_embeddings", positions)
    factor = rope.number("factor", positions / original, low=1.0)
    dim = 2 * frequency.numel()

    def index_of(turns: float) -> float:
        """Which of the dims makes this many full turns within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = index_of(rope.number("beta_fast", 32.0, low=1e-6))
    high = index_of(rope.number("beta_slow", 1.0, low=1e-6))
    if rope.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if high == low else high
    stretched = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - stretched + stretched / factor), _yarn_scale(rope, factor)


def _yarn_scale(rope: Fields, factor: float) -> float:
    def grow(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given = rope.number("attention_factor", None)
    if given is not None:
        return given
    numerator, denominator = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    return grow(numerator) / grow(denominator) if numerator and denominator else grow(1.0)


FREQUENCIES: dict[str, Callable[[torch.Tensor, Fields, float, int], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""rope_type to (frequencies, scale of cos and sin)."""
