"""compressed-tensors (llm-compressor): groups of modules, each with a layout of its own.

pack-quantized    weight_packed int32 [outs, inputs * bits / 32], along the inputs, low bits first, values 2^(b-1) more
                  weight_scale [outs, groups], weight_zero_point int32 [outs * bits / 32, groups], weight_g_idx [inputs]
int-quantized     weight int8 [outs, inputs], weight_scale [outs, 1], or one number
float-quantized, nvfp4-pack-quantized        see `floats`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quire.checkpoint import Fields
from quire.errors import ConfigError
from quire.worker.kernels.weights import AnyWeights, GroupWeights
from quire.worker.quantization.floats import Fp8, Nvfp4
from quire.worker.quantization.format import Format, FormatError, Skips, pattern
from quire.worker.quantization.pieces import FLOATS, INTEGERS, Piece, Read
from quire.worker.quantization.words import group_order, num_words, unpack_words

STRATEGIES = ("tensor", "channel", "group", "block")


@dataclass(frozen=True, slots=True)
class Packed:
    """One module's, of 4 or 8 bits in words.

    Args:
        group: inputs of a group; 0 is all.
        has_zeros: of asymmetric ones.
    """

    bits: int
    group: int
    has_zeros: bool
    name = "compressed-tensors, pack-quantized"
    marker = ("weight_packed", (torch.int32,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""

        def groups(inputs: int) -> int:
            return -(-inputs // self.group) if self.group else 1

        zeros = Piece(
            lambda outs, inputs: (num_words(outs, self.bits), groups(inputs)),
            (torch.int32,),
            optional=not self.has_zeros,
        )
        return {
            "weight_packed": Piece(lambda outs, inputs: (outs, num_words(inputs, self.bits)), (torch.int32,)),
            "weight_scale": Piece(lambda outs, inputs: (outs, groups(inputs)), FLOATS, flat=True),
            "weight_zero_point": zeros,
            "weight_g_idx": Piece(lambda outs, inputs: (inputs,), INTEGERS, optional=True),
            "weight_shape": Piece(lambda outs, inputs: (2,), INTEGERS, optional=True),
            **_input_pieces(),
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        if "weight_shape" in read and read["weight_shape"].tolist() != [outs, inputs]:
            raise FormatError(f"weight_shape is {read['weight_shape'].tolist()}, config.json makes it {[outs, inputs]}")
        group, scales = self.group or inputs, read["weight_scale"]
        values = unpack_words(read["weight_packed"], self.bits, inputs)
        zeros = None
        if self.has_zeros:
            zeros = unpack_words(read["weight_zero_point"].t().contiguous(), self.bits, outs).t().to(scales.dtype)
        order = group_order(read.get("weight_g_idx"), group, inputs)
        if order is not None:
            values = values[:, order]
        return GroupWeights.make(values, scales, zeros, bits=self.bits, group=group, order=order)


@dataclass(frozen=True, slots=True)
class Bytes:
    """One module's, of 8 bits as they are.

    Args:
        group: inputs of a group; 0 is all.
        has_zeros: of asymmetric ones.
    """

    group: int
    has_zeros: bool
    name = "compressed-tensors, int-quantized"
    marker = ("weight", (torch.int8,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        anything = Piece(lambda outs, inputs: (None,), FLOATS, flat=True)
        zeros = Piece(lambda outs, inputs: (None,), (torch.int8, *INTEGERS), optional=not self.has_zeros, flat=True)
        return {
            "weight": Piece(lambda outs, inputs: (outs, inputs), (torch.int8,)),
            "weight_scale": anything,
            "weight_zero_point": zeros,
            **_input_pieces(),
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        group = self.group or inputs
        groups = -(-inputs // group)
        scales = read["weight_scale"]
        if scales.numel() not in (1, outs * groups):
            raise FormatError(f"weight_scale has {scales.numel()} numbers, expected 1 or {outs * groups}")
        scales = scales.reshape(-1, groups if scales.numel() > 1 else 1).expand(outs, groups)
        zeros = None
        if self.has_zeros:
            zeros = read["weight_zero_point"].float().reshape(-1, groups).expand(outs, groups).to(scales.dtype) + 128
        return GroupWeights.make(read["weight"].view(torch.uint8) ^ 128, scales, zeros, bits=8, group=group)


def _input_pieces() -> dict[str, Piece]:
    """Of inputs that were measured; ours stay in the format of the activations."""
    return {
        "input_scale": Piece(lambda outs, inputs: (None,), FLOATS, optional=True, flat=True),
        "input_zero_point": Piece(lambda outs, inputs: (None,), (torch.int8, *INTEGERS), optional=True, flat=True),
        "input_global_scale": Piece(lambda outs, inputs: (None,), FLOATS, optional=True, flat=True),
    }


@dataclass(frozen=True, slots=True)
class CompressedFormats:
    """A whole checkpoint's.

    Args:
        groups: patterns of module names, or None for every linear layer, and the format of these.
        ignored: modules that have none.
    """

    groups: tuple[tuple[Any, Format], ...]
    ignored: Skips

    @property
    def summary(self) -> str:
        """See Formats."""
        return " and ".join(dict.fromkeys(_summary(made) for _, made in self.groups))

    def of(self, module: str) -> Format | None:
        """Named targets come before those that are every linear layer."""
        if self.ignored.has(module):
            return None
        named = [made for found, made in self.groups if found is not None and found.match(module)]
        return next(iter([*named, *(made for found, made in self.groups if found is None)]), None)

    def head(self) -> bool:
        """See Formats."""
        return False


def _summary(made: Format) -> str:
    bits = f", {made.bits} bits" if isinstance(made, Packed) else ""
    return f"compressed-tensors {made.name}{bits}" if not made.name.startswith("compressed") else made.name + bits


def read(fields: Fields) -> CompressedFormats:
    """From a config.

    Raises:
        ConfigError: a layout that there is no reader for.
    """
    for key in ("sparsity_config", "transform_config"):
        section = fields.section(key)
        if (
            section is not None
            and section.values.get("format") != "dense"
            and section.values.get("config_groups") != {}
        ):
            fields.fail(key, "is not supported; save the model without it", dict(section.values))
    groups = fields.section("config_groups")
    if groups is None:
        raise ConfigError(f"{fields.where}: config_groups is missing.")
    found: list[tuple[Any, Format]] = []
    for name in groups.values:
        group = groups.section(name)
        if group is None:
            groups.fail(name, "must be an object", None)
        made = _format(group, group.text("format", None) or fields.text("format", "dense"))
        for target in group.texts("targets"):
            found.append((_target(target, group), made))
    return CompressedFormats(tuple(found), Skips.read(fields, "ignore"))


def _target(text: str, group: Fields) -> Any:
    """A class of modules is all of ours; a name is that of a module, or its end."""
    if text.startswith("re:"):
        return pattern(text.removeprefix("re:"), group, "targets")
    if text[:1].isupper():
        return None
    return pattern(rf"(.*\.)?{text.replace('.', chr(92) + '.')}$", group, "targets")


def _format(group: Fields, layout: str) -> Format:
    weights = group.section("weights")
    if weights is None:
        raise ConfigError(f"{group.where}: weights is missing.")
    kind, bits = weights.text("type", "int"), weights.integer("num_bits")
    strategy = weights.text("strategy", None) or ("group" if weights.values.get("group_size") else "tensor")
    size = weights.integer("group_size", None, low=-1) if strategy == "group" else None
    size = 0 if size in (None, -1) else size
    zeros = not weights.flag("symmetric", True)
    inputs = group.section("input_activations")
    static = inputs is not None and inputs.values.get("dynamic") is False
    if layout == "pack-quantized" and kind == "int" and bits in (4, 8) and strategy != "block":
        return Packed(bits, size, zeros)
    if layout in ("int-quantized", "naive-quantized") and kind == "int" and bits == 8 and strategy != "block":
        return Bytes(size, zeros)
    if layout in ("float-quantized", "naive-quantized") and kind == "float" and bits == 8 and strategy != "group":
        tile = weights.integers("block_structure", low=1)
        if strategy == "block" and len(tile) != 2:
            weights.fail("block_structure", "must be two sizes, as [128, 128]", list(tile))
        return Fp8((tile[0], tile[1]) if strategy == "block" else None, static)
    if layout == "nvfp4-pack-quantized" and kind == "float" and bits == 4:
        return Nvfp4("weight_global_scale", reciprocal=True, weight="weight_packed")
    raise ConfigError(
        f"{group.where}: weights of {bits} bits, type {kind}, strategy {strategy} in format {layout} cannot be read."
        " Known: pack-quantized int of 4 and 8 bits, int-quantized of 8, float-quantized of 8, nvfp4-pack-quantized."
    )
