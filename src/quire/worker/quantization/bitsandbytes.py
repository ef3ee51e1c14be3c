"""bitsandbytes (Dettmers et al. 2022, 2023): 8-bit weights with a scale per output, and 4-bit ones that are places in a
table (nf4, fp4) with a scale per 64 weights, which may be quantized once more.

    weight  int8 [outs, inputs]     w = weight * SCB / 127                       SCB float32 [outs]
    weight  uint8 [outs * inputs / 2, 1], the first number in the upper half     w = quant_map[weight] * absmax[i / 64]
        weight.absmax           float32, or uint8: nested_quant_map[absmax] * nested_absmax[j / 256] + nested_offset
        weight.quant_state.*    JSON as bytes: shape, blocksize, nested_blocksize, nested_offset
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from quire.checkpoint import Fields
from quire.errors import ConfigError
from quire.worker.kernels.weights import AnyWeights, GroupWeights, TableWeights
from quire.worker.quantization.format import Format, FormatError, Skips
from quire.worker.quantization.pieces import FLOATS, Piece, Read


@dataclass(frozen=True, slots=True)
class EightBits:
    """One module's."""

    name = "bitsandbytes, 8 bits"
    marker = ("weight", (torch.int8,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        return {
            "weight": Piece(lambda outs, inputs: (outs, inputs), (torch.int8,)),
            "SCB": Piece(lambda outs, inputs: (outs,), FLOATS, flat=True),
            "weight_format": Piece(lambda outs, inputs: (1,), (torch.uint8, torch.int64), optional=True, flat=True),
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        if "weight_format" in read and int(read["weight_format"]) != 0:
            raise FormatError("weight_format is not 0 (row by row)")
        values = (read["weight"].view(torch.uint8) ^ 128).contiguous()  # 128 more than the signed number
        return GroupWeights.make(values, read["SCB"].float()[:, None] / 127, None, bits=8, group=inputs)


@dataclass(frozen=True, slots=True)
class FourBits:
    """One module's; `kind` is nf4 or fp4."""

    kind: str
    name = "bitsandbytes, 4 bits"
    marker = ("weight.absmax", (*FLOATS, torch.uint8))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""

        def some(*dtypes: torch.dtype) -> Piece:
            return Piece(lambda outs, inputs: (None,), dtypes, optional=True, flat=True)

        weight = some(torch.uint8, torch.bfloat16, torch.float16, torch.float32)
        scales = some(*FLOATS, torch.uint8)
        return {
            "weight": replace(weight, optional=False, random=lambda outs, inputs: (outs * inputs // 2,)),
            "weight.absmax": replace(scales, optional=False, random=lambda outs, inputs: (-(-outs * inputs // 64),)),
            "weight.quant_map": Piece(lambda outs, inputs: (16,), FLOATS, flat=True),
            "weight.nested_absmax": some(*FLOATS),
            "weight.nested_quant_map": some(*FLOATS),
            f"weight.quant_state.bitsandbytes__{self.kind}": some(torch.uint8),
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        text = read.get(f"weight.quant_state.bitsandbytes__{self.kind}")
        if text is None and read["weight.absmax"].dtype == torch.uint8:
            raise FormatError(f"it has no weight.quant_state.bitsandbytes__{self.kind}")
        state = {} if text is None else _state(text)
        if state.get("shape", [outs, inputs]) != [outs, inputs]:
            raise FormatError(f"its quant_state says shape {state.get('shape')}, config.json makes it {[outs, inputs]}")
        packed = read["weight"].contiguous().view(-1).view(torch.uint8)  # bytes may be stored as another format
        if packed.numel() != outs * inputs // 2 or inputs % 2:
            raise FormatError(f"weight has {packed.numel()} bytes, expected {outs * inputs / 2:g}")
        size = _whole(state, "blocksize", 64)
        scales = _scales(read, state)
        if len(scales) != -(-outs * inputs // size):
            raise FormatError(f"absmax has {len(scales)} numbers, expected {-(-outs * inputs // size)}")
        block = math.gcd(inputs, size)  # blocks run on from one output to the next: such pieces lie within one
        place = torch.arange(0, outs * inputs, block, device=scales.device) // size
        q = (packed >> 4 | packed << 4).view(outs, inputs // 2)
        return TableWeights(q, read["weight.quant_map"].float()[None], scales[place].view(outs, -1), block, inputs)


def _state(text: torch.Tensor) -> dict[str, Any]:
    try:
        state = json.loads(bytes(text.cpu().flatten().tolist()).decode())
    except (ValueError, RecursionError):
        raise FormatError("its quant_state is no JSON") from None
    if not isinstance(state, dict):
        raise FormatError("its quant_state is no JSON object")
    return state


def _whole(state: dict[str, Any], key: str, default: int) -> int:
    value = state.get(key, default)
    if type(value) is not int or not 1 <= value <= 1 << 20:
        raise FormatError(f"its quant_state says {key} {value!r}")
    return value


def _scales(read: Read, state: dict[str, Any]) -> torch.Tensor:
    """float32, one per block."""
    absmax = read["weight.absmax"].flatten()
    if absmax.dtype != torch.uint8:
        return absmax.float()
    if not {"weight.nested_absmax", "weight.nested_quant_map"} <= read.keys():
        raise FormatError("absmax is quantized, but nested_absmax or nested_quant_map is missing")
    nested, table = read["weight.nested_absmax"].float().flatten(), read["weight.nested_quant_map"].float().flatten()
    offset, size = state.get("nested_offset", 0.0), _whole(state, "nested_blocksize", 256)
    if len(table) != 256 or len(nested) != -(-len(absmax) // size) or not isinstance(offset, int | float):
        raise FormatError("nested_absmax, nested_quant_map and nested_offset do not go together")
    return table[absmax.long()] * nested.repeat_interleave(size)[: len(absmax)] + offset


@dataclass(frozen=True, slots=True)
class BitsAndBytesFormats:
    """A whole checkpoint's."""

    usual: Format
    skips: Skips

    @property
    def summary(self) -> str:
        """See Formats."""
        return self.usual.name

    def of(self, module: str) -> Format | None:
        """See Formats."""
        return None if self.skips.has(module) else self.usual

    def head(self) -> bool:
        """See Formats."""
        return False


def read(fields: Fields) -> BitsAndBytesFormats:
    """From a config.

    Raises:
        ConfigError: neither 4 nor 8 bits, or a table that there is none of.
    """
    skips = Skips.read(fields, "llm_int8_skip_modules")
    if fields.flag("load_in_4bit", False) or fields.flag("_load_in_4bit", False):
        kind = fields.text("bnb_4bit_quant_type", "fp4")
        if kind not in ("nf4", "fp4"):
            fields.fail("bnb_4bit_quant_type", "must be nf4 or fp4", kind)
        return BitsAndBytesFormats(FourBits(kind), skips)
    if fields.flag("load_in_8bit", False) or fields.flag("_load_in_8bit", False):
        return BitsAndBytesFormats(EightBits(), skips)
    raise ConfigError(f"{fields.where}: neither load_in_4bit nor load_in_8bit is true.")
