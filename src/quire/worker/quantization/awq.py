"""AWQ (Lin et al. 2023): whole numbers of 4 bits in groups of inputs, in checkpoints of AutoAWQ.

qweight  int32 [inputs, outs / 8]      packed along the outputs, in the order 0 2 4 6 1 3 5 7
qzeros   int32 [groups, outs / 8]      the same; absent where the middle is zero
scales   float [groups, outs]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.checkpoint import Fields
from quire.worker.kernels.weights import AnyWeights, GroupWeights
from quire.worker.quantization.format import Skips, one_of
from quire.worker.quantization.pieces import FLOATS, Piece, Read
from quire.worker.quantization.words import unpack_words

ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Output i of eight is number ORDER[i] of its word."""
GROUPS = (-1, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True)
class Awq:
    """One module's.

    Args:
        group: inputs of a group; -1 is all.
        has_zeros: they are stored.
    """

    group: int
    has_zeros: bool
    name = "awq"
    marker = ("qweight", (torch.int32,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""

        def groups(inputs: int) -> int:
            return 1 if self.group == -1 else -(-inputs // self.group)

        int32 = (torch.int32,)
        return {
            "qweight": Piece(lambda outs, inputs: (inputs, -(-outs // 8)), int32),
            "qzeros": Piece(lambda outs, inputs: (groups(inputs), -(-outs // 8)), int32, optional=not self.has_zeros),
            "scales": Piece(lambda outs, inputs: (groups(inputs), outs), FLOATS),
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        scales = read["scales"].t().contiguous()
        zeros = _unpack(read["qzeros"], outs).t().to(scales.dtype) if self.has_zeros else None
        values = _unpack(read["qweight"], outs).t().contiguous()
        return GroupWeights.make(values, scales, zeros, bits=4, group=inputs if self.group == -1 else self.group)


def _unpack(words: torch.Tensor, outs: int) -> torch.Tensor:
    """int32 [lines, outs / 8] -> uint8 [lines, outs]."""
    values = unpack_words(words, 4, words.shape[1] * 8).view(len(words), -1, 8)
    return values[:, :, list(ORDER)].flatten(1)[:, :outs]


@dataclass(frozen=True, slots=True)
class AwqFormats:
    """A whole checkpoint's."""

    usual: Awq
    skips: Skips
    summary = "awq, 4 bits"

    def of(self, module: str) -> Awq | None:
        """See Formats."""
        return None if self.skips.has(module) else self.usual

    def head(self) -> bool:
        """See Formats."""
        return False


def read(fields: Fields) -> AwqFormats:
    """From a config.

    Raises:
        ConfigError: bits, group sizes or a layout that there are none of.
    """
    one_of(fields, ("bits", "w_bit"), (4,))
    layout = fields.text("version", "gemm").lower()
    if layout != "gemm":
        fields.fail("version", "must be gemm; save it again with version='GEMM'", layout)
    group = one_of(fields, ("group_size", "q_group_size"), GROUPS, 128)
    return AwqFormats(Awq(group, fields.flag("zero_point", True)), Skips.read(fields, "modules_to_not_convert"))
