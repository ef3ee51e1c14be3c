"""Rotary position embedding (Su et al. 2021) and the ways it is stretched to longer contexts.

A head's two halves are the real and imaginary parts of dim / 2 numbers; position p turns number i by p * frequency[i]:

    (a, b) -> (a cos - b sin, b cos + a sin)        a = x[..., : dim / 2]   b = x[..., dim / 2 :]

A stretched kind only changes the frequencies, and YaRN also the length of the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from quire.checkpoint import Fields, rope_fields
from quire.worker.layers.build import Build


class RotaryEmbedding(nn.Module):
    """cos and sin of a step's positions; computed once and used by every layer.

    Where only the first `rotary_dim` numbers of a head turn, the others get frequency 0, at the end of each half; the
    rows of q and k are laid so (`turned_order`).

    Args:
        head_dim: size of a head, even.
        config: config.json; `rope_parameters`, or `rope_theta` and `rope_scaling`.
        theta: the family's base where the config names none.
        layer_type: which of several settings, where layers of different kinds have their own.
        turned: `rotary_dim`, where the family has a value of its own.

    Raises:
        ConfigError: for a kind or value that is not known, naming the key.
    """

    def __init__(
        self,
        head_dim: int,
        config: Fields,
        build: Build,
        *,
        theta: float = 10_000.0,
        layer_type: str | None = None,
        turned: int | None = None,
    ) -> None:
        super().__init__()
        rope = rope_fields(config, layer_type)
        kind = rope.text("rope_type")
        if kind not in FREQUENCIES:
            rope.fail("rope_type", f"must be one of {', '.join(sorted(FREQUENCIES))}", kind)
        turned = turned or rotary_dim(config, head_dim)
        positions = config.integer("max_position_embeddings", 2048)
        length = Length(rope.number("rope_theta", theta, low=1.0 + 1e-6), positions, build.max_model_len or positions)
        frequency, self.scale = FREQUENCIES[kind](_plain(turned, length.base), rope, length)
        self.dtype = build.dtype
        self._kernels = build.kernels
        self._num_turned = len(frequency) if self.scale != 1.0 else head_dim // 2
        frequency = F.pad(frequency, (0, head_dim // 2 - len(frequency)))
        self.frequency = nn.Buffer(frequency.to(build.device), persistent=False)  # [head_dim / 2] float32

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [tokens] -> cos, sin [tokens, head_dim / 2]."""
        cos, sin = self._kernels.turns(positions, self.frequency, self.scale, self.dtype)
        if self._num_turned < cos.shape[1]:
            cos[:, self._num_turned :] = 1  # the scale is for what turns
        return cos, sin


def rotary_dim(config: Fields, head_dim: int, *, absent: float = 1.0) -> int:
    """How many numbers of a head turn; `absent` is the share where the config names none."""
    rope = rope_fields(config)
    factor = rope.number("partial_rotary_factor", absent, low=1e-6, high=1.0)
    turned = int(head_dim * factor)
    if turned < 2 or turned % 2:
        rope.fail("partial_rotary_factor", f"must make an even part of head_dim ({head_dim})", factor)
    return turned


def turned_order(num_heads: int, head_dim: int, turned: int) -> torch.Tensor:
    """The order of q's or k's rows in which the two numbers of a turn lie half a head apart.

    checkpoint  | a a b b - - - - |        a, b: the turned ones; -: the others
    ours        | a a - - b b - - |
    """
    head = torch.arange(head_dim)
    (first, second), others = head[:turned].chunk(2), head[turned:]
    one = torch.cat([first, others[: len(others) // 2], second, others[len(others) // 2 :]])
    return (torch.arange(num_heads)[:, None] * head_dim + one).flatten()


@dataclass(frozen=True, slots=True)
class Length:
    """What a stretched kind may depend on: the base, the positions that the config names, and the longest request that
    is served. Kinds that stretch with a text's length take the last, so that all texts see the same frequencies."""

    base: float
    positions: int
    served: int


Frequencies = tuple[torch.Tensor, float]


def _plain(head_dim: int, base: float) -> torch.Tensor:
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return 1.0 / base**exponent  # [head_dim / 2]


def _default(frequency: torch.Tensor, rope: Fields, length: Length) -> Frequencies:
    return frequency, 1.0


def _dynamic(frequency: torch.Tensor, rope: Fields, length: Length) -> Frequencies:
    """NTK-aware stretching: a larger base, from the length on at which it is needed."""
    factor, dim = rope.number("factor", low=1.0), 2 * frequency.numel()
    stretch = factor * max(length.served, length.positions) / length.positions - (factor - 1)
    return _plain(dim, length.base * stretch ** (dim / (dim - 2))), 1.0


def _longrope(frequency: torch.Tensor, rope: Fields, length: Length) -> Frequencies:
    """LongRoPE (Ding et al. 2024): each frequency has a factor of its own, one for short and one for long contexts."""
    original = rope.integer("original_max_position_embeddings", length.positions)
    key = "long_factor" if length.served > original else "short_factor"
    factors = rope.numbers(key, low=1e-6)
    if len(factors) != frequency.numel():
        rope.fail(key, f"must have {frequency.numel()} numbers", len(factors))
    factor = rope.number("factor", length.positions / original)
    grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return frequency / torch.tensor(factors), rope.number("attention_factor", grown)


def _linear(frequency: torch.Tensor, rope: Fields, length: Length) -> Frequencies:
    """Position interpolation (Chen et al. 2023): all positions closer together."""
    return frequency / rope.number("factor", low=1.0), 1.0


def _llama3(frequency: torch.Tensor, rope: Fields, length: Length) -> Frequencies:
    """Llama 3.1: slow turns are stretched, fast ones left alone, those between blended.

    wave length   ... original / high | blend | original / low ...
    """
    factor = rope.number("factor", low=1.0)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if not low < high:
        rope.fail("high_freq_factor", f"must be greater than low_freq_factor ({low:g})", high)
    original = rope.integer("original_max_position_embeddings", length.positions)
    turns = original * frequency / (2 * math.pi)  # full turns within the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequency * (keep + (1 - keep) / factor), 1.0


def _yarn(frequency: torch.Tensor, rope: Fields, length: Length) -> Frequencies:
    """YaRN (Peng et al. 2023): a ramp between stretched and plain frequencies, and sharper attention."""
    original = rope.integer("original_max_position_embeddings", length.positions)
    factor = rope.number("factor", length.positions / original, low=1.0)
    dim = 2 * frequency.numel()

    def index_of(turns: float) -> float:
        """Which of the dims makes this many full turns within the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(length.base))

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


FREQUENCIES: dict[str, Callable[[torch.Tensor, Fields, Length], Frequencies]] = {
    "default": _default,
    "dynamic": _dynamic,
    "longrope": _longrope,
    "su": _longrope,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""rope_type to (frequencies, scale of cos and sin)."""
