"""Floats of 8 and 4 bits as several makers store them: the layouts; `fp8`, `compressed` and `modelopt` read configs.

weight  float8_e4m3fn [outs, inputs]                                    w = weight * scale
    scale   weight_scale or weight_scale_inv, float32: one number, one per output, or one per tile [128, 128]
weight  uint8 [outs, inputs / 2], two E2M1 numbers, the even one lower  w = weight * weight_scale * global
    weight_scale  float8_e4m3fn [outs, inputs / 16]
    global        one number: weight_scale_2, or the reciprocal of weight_global_scale
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from quire.worker.kernels.weights import AnyWeights, FloatWeights, TableWeights
from quire.worker.quantization.format import FormatError
from quire.worker.quantization.pieces import FLOATS, Piece, Read

SCALES = (*FLOATS, torch.float8_e8m0fnu)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
TINY = 16
"""Inputs that share a scale of 4-bit floats."""


@dataclass(frozen=True, slots=True)
class Fp8:
    """One module's.

    Args:
        tile: outputs and inputs that share a scale; None is one number for all, or one per output.
        static: the scale of the inputs was measured when the checkpoint was made.
    """

    tile: tuple[int, int] | None = None
    static: bool = False
    name = "fp8"
    marker = ("weight", (torch.float8_e4m3fn,))

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        scale = Piece(self._scales, SCALES, optional=True, flat=self.tile is None)
        measured = Piece(lambda outs, inputs: (1,), FLOATS, optional=True, flat=True)
        return {
            "weight": Piece(lambda outs, inputs: (outs, inputs), (torch.float8_e4m3fn,)),
            "weight_scale": replace(scale, dtypes=(torch.float32, *SCALES), random=self._scales),
            "weight_scale_inv": scale,
            "input_scale": replace(measured, random=(lambda outs, inputs: (1,)) if self.static else None),
            "activation_scale": measured,
            "input_scale_ub": measured,
        }

    def _scales(self, outs: int, inputs: int) -> tuple[int | None, ...]:
        if self.tile is None:
            return (None,)
        return (-(-outs // self.tile[0]), -(-inputs // self.tile[1]))

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        scale = read.get("weight_scale", read.get("weight_scale_inv"))
        if scale is None:
            raise FormatError("it has no weight_scale")
        measured = read.get("input_scale", read.get("activation_scale"))
        if self.static and measured is None:
            raise FormatError("it has no input_scale, though its config says that inputs were measured")
        measured = measured.float().reshape(()) if self.static and measured is not None else None
        scale = scale.float()
        if self.tile is not None:
            return FloatWeights(read["weight"], scale, *self.tile, measured)
        if scale.numel() not in (1, outs):
            raise FormatError(f"weight_scale has {scale.numel()} numbers, expected 1 or {outs}")
        return FloatWeights(read["weight"], scale.reshape(-1, 1).expand(outs, 1).contiguous(), 1, inputs, measured)


@dataclass(frozen=True, slots=True)
class Nvfp4:
    """One module's. scale: the name of the number for all; `reciprocal` ones are divided by."""

    scale: str
    reciprocal: bool
    weight: str
    name = "nvfp4"

    @property
    def marker(self) -> tuple[str, tuple[torch.dtype, ...]]:
        """See Format."""
        return self.weight, (torch.uint8,)

    def pieces(self) -> dict[str, Piece]:
        """See Format."""
        number = Piece(lambda outs, inputs: (1,), FLOATS, flat=True)
        unused = Piece(lambda outs, inputs: (1,), FLOATS, optional=True, flat=True)
        return {
            self.weight: Piece(lambda outs, inputs: (outs, inputs // 2), (torch.uint8,)),
            "weight_scale": Piece(lambda outs, inputs: (outs, -(-inputs // TINY)), (torch.float8_e4m3fn,)),
            self.scale: number,
            "input_scale": unused,
            "input_global_scale": unused,
        }

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """See Format."""
        if inputs % TINY:
            raise FormatError(f"its {inputs} inputs do not divide by {TINY}")
        factor = read[self.scale].float().reshape(())
        values = torch.tensor([*E2M1, *(-value for value in E2M1)], device=factor.device)
        table = (values / factor if self.reciprocal else values * factor).expand(outs, 16).contiguous()
        return TableWeights(read[self.weight], table, read["weight_scale"].bfloat16(), TINY, inputs)


def is_tile(tile: tuple[int, ...]) -> bool:
    """Whether scales can lie in such tiles."""
    return len(tile) == 2 and all(n >= 1 for n in tile) and math.prod(tile) > 1
