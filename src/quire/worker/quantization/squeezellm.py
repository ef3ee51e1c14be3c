"""SqueezeLLM (Kim et al. 2023): every output has a table of 16 (or 8) values, weights are places in it; the largest and
most sensitive ones lie beside in a sparse matrix.

    qweight       int32 [inputs * bits / 32, outs]      packed along the inputs, low bits first
    lookup_table  float [outs, 2 ** bits]
    rows, cols, vals                                    the sparse matrix by rows: [outs + 1], [n], [n]
    full_rows [inputs, m], full_row_indices [m]         outputs with many such values
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from quire.checkpoint import Fields
from quire.worker.kernels.weights import AnyWeights, TableWeights, pack_halves
from quire.worker.quantization.format import FormatError, Skips, one_of
from quire.worker.quantization.pieces import FLOATS, INTEGERS, Piece, Read
from quire.worker.quantization.words import num_words, unpack_words


@dataclass(frozen=True, slots=True)
class SqueezeLLM:
    """One module's, of 3 or 4 bits."""

    bits: int
    name = "squeezellm"
    marker = ("qweight", (torch.int32,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        bits = self.bits
        maybe = {"optional": True}
        return {
            "qweight": Piece(lambda outs, inputs: (num_words(inputs, bits), outs), (torch.int32,)),
            "lookup_table": Piece(lambda outs, inputs: (outs, 1 << bits), FLOATS),
            "rows": Piece(lambda outs, inputs: (outs + 1,), INTEGERS, **maybe),
            "cols": Piece(lambda outs, inputs: (None,), INTEGERS, **maybe),
            "vals": Piece(lambda outs, inputs: (None,), FLOATS, **maybe),
            "full_rows": Piece(lambda outs, inputs: (inputs, None), FLOATS, **maybe),
            "full_row_indices": Piece(lambda outs, inputs: (None,), INTEGERS, **maybe),
            "startrows": Piece(lambda outs, inputs: (None,), INTEGERS, **maybe),  # how threads would share the work
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        q = pack_halves(unpack_words(read["qweight"].t().contiguous(), self.bits, inputs))
        table = F.pad(read["lookup_table"].float(), (0, 16 - (1 << self.bits)))
        places, extra = _sparse(read, outs, inputs)
        return TableWeights(q, table, None, inputs, inputs, places, extra)


def _sparse(read: Read, outs: int, inputs: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Places and values of what is added to the table's values."""
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    if "vals" in read:
        if not {"rows", "cols"} <= read.keys():
            raise FormatError("it has vals, but not both rows and cols")
        rows, cols = read["rows"].long(), read["cols"].long()
        counts = rows.diff()
        if (
            len(cols) != len(read["vals"])
            or int(rows[0]) != 0
            or int(rows[-1]) != len(cols)
            or bool((counts < 0).any())
        ):
            raise FormatError("rows, cols and vals do not make a sparse matrix")
        if len(cols) and not 0 <= int(cols.min()) <= int(cols.max()) < inputs:
            raise FormatError(f"cols are not all below {inputs}")
        out = torch.arange(outs, device=rows.device).repeat_interleave(counts)
        found.append((out * inputs + cols, read["vals"].float()))
    if "full_rows" in read:
        lines = read.get("full_row_indices")
        if lines is None or len(lines) != read["full_rows"].shape[1]:
            raise FormatError("full_rows and full_row_indices do not go together")
        if len(lines) and not 0 <= int(lines.min()) <= int(lines.max()) < outs:
            raise FormatError(f"full_row_indices are not all below {outs}")
        each = torch.arange(inputs, device=lines.device)
        found.append(((lines.long()[:, None] * inputs + each).flatten(), read["full_rows"].t().float().flatten()))
    if not found:
        return None, None
    places, extra = (torch.cat(parts) for parts in zip(*found, strict=True))
    places, order = places.sort()
    return places, extra[order]


@dataclass(frozen=True, slots=True)
class SqueezeLLMFormats:
    """A whole checkpoint's."""

    usual: SqueezeLLM
    skips: Skips

    @property
    def summary(self) -> str:
        """See Formats."""
        return f"squeezellm, {self.usual.bits} bits"

    def of(self, module: str) -> SqueezeLLM | None:
        """See Formats."""
        return None if self.skips.has(module) else self.usual

    def head(self) -> bool:
        """See Formats."""
        return False


def read(fields: Fields) -> SqueezeLLMFormats:
    """From a config.

    Raises:
        ConfigError: neither 3 nor 4 bits.
    """
    return SqueezeLLMFormats(
        SqueezeLLM(one_of(fields, ("wbits", "bits"), (3, 4), 4)), Skips.read(fields, "modules_to_not_convert")
    )
