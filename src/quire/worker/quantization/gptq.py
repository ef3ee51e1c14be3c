"""GPTQ (Frantar et al. 2022): whole numbers of 2, 3, 4 or 8 bits in groups of inputs, in checkpoints of AutoGPTQ and
GPTQModel.

    qweight  int32 [inputs * bits / 32, outs]      packed along the inputs, low bits first
    qzeros   int32 [groups, outs * bits / 32]      packed along the outputs; zero - 1 in files of the first version
    scales   float [groups, outs]
    g_idx    int32 [inputs]                        the group of every input; without it they follow one another
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from quire.checkpoint import Fields
from quire.worker.kernels.weights import AnyWeights, GroupWeights
from quire.worker.quantization.format import Skips, one_of, pattern
from quire.worker.quantization.pieces import FLOATS, INTEGERS, Piece, Read
from quire.worker.quantization.words import group_order, num_words, unpack_words

BITS = (2, 3, 4, 8)
GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Gptq:
    """One module's.

    Args:
        bits: of a weight.
        group: inputs of a group; -1 is all.
        second: zeros are stored as they are (checkpoint_format gptq_v2).
    """

    bits: int
    group: int
    second: bool
    name = "gptq"
    marker = ("qweight", (torch.int32,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        bits, group = self.bits, self.group

        def groups(inputs: int) -> int:
            return 1 if group == -1 else -(-inputs // group)

        return {
            "qweight": Piece(lambda outs, inputs: (num_words(inputs, bits), outs), (torch.int32,)),
            "qzeros": Piece(lambda outs, inputs: (groups(inputs), num_words(outs, bits)), (torch.int32,)),
            "scales": Piece(lambda outs, inputs: (groups(inputs), outs), FLOATS),
            "g_idx": Piece(lambda outs, inputs: (inputs,), INTEGERS, optional=True),
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        group = inputs if self.group == -1 else self.group
        values = unpack_words(read["qweight"].t().contiguous(), self.bits, inputs)
        zeros = unpack_words(read["qzeros"], self.bits, outs).t()
        scales = read["scales"].t().contiguous()
        if not self.second:
            zeros = (zeros + 1) & ((1 << self.bits) - 1)  # of zero 0 one less is the highest
        zeros = zeros.to(scales.dtype)
        order = group_order(read.get("g_idx"), group, inputs)
        if order is not None:
            values = values[:, order]
        middle = self.bits in (4, 8) and bool((zeros == 1 << (self.bits - 1)).all())
        return GroupWeights.make(values, scales, None if middle else zeros, bits=self.bits, group=group, order=order)


@dataclass(frozen=True, slots=True)
class GptqFormats:
    """A whole checkpoint's: the usual format, and `dynamic`, patterns of module names with other settings."""

    usual: Gptq
    skips: Skips
    dynamic: tuple[tuple[Any, Fields | None], ...]
    lm_head: bool

    @property
    def summary(self) -> str:
        """See Formats."""
        return f"gptq, {self.usual.bits} bits"

    def of(self, module: str) -> Gptq | None:
        """The first pattern that matches decides; `-:` excludes."""
        for found, changes in self.dynamic:
            if found.match(module):
                return None if changes is None else _module(changes, self.usual)
        return None if self.skips.has(module) else self.usual

    def head(self) -> bool:
        """See Formats."""
        return self.lm_head


def read(fields: Fields) -> GptqFormats:
    """From a config.

    Raises:
        ConfigError: bits or group sizes that there are none of.
    """
    kind = fields.text("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2", ""):
        fields.fail("checkpoint_format", "must be gptq or gptq_v2; save it again in one of these", kind)
    bits = one_of(fields, ("bits", "w_bit"), BITS)
    usual = Gptq(bits, one_of(fields, ("group_size", "q_group_size"), GROUPS, -1), kind == "gptq_v2")
    patterns = []
    for text in (fields.section("dynamic") or Fields({}, fields.where)).values:
        found = pattern(text.removeprefix("-:").removeprefix("+:"), fields, "dynamic")
        section = Fields(fields.section("dynamic").values[text] or {}, f"{fields.where}: dynamic")  # type: ignore[union-attr]
        patterns.append((found, None if text.startswith("-:") else section))
    for _, changes in patterns:
        if changes is not None:
            _module(changes, usual)
    skips = Skips.read(fields, "modules_to_not_convert")
    return GptqFormats(usual, skips, tuple(patterns), fields.flag("lm_head", False))


def _module(changes: Fields, usual: Gptq) -> Gptq:
    bits = one_of(changes, ("bits",), BITS, usual.bits)
    return replace(usual, bits=bits, group=one_of(changes, ("group_size",), GROUPS, usual.group))
