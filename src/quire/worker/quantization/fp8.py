"""Configs that say `fp8` (and `fbgemm_fp8`): see `floats` for the tensors."""

from __future__ import annotations

from dataclasses import dataclass

from quire.checkpoint import Fields
from quire.worker.quantization.floats import Fp8, is_tile
from quire.worker.quantization.format import Skips


@dataclass(frozen=True, slots=True)
class Fp8Formats:
    """A whole checkpoint's."""

    usual: Fp8
    skips: Skips
    summary = "fp8"

    def of(self, module: str) -> Fp8 | None:
        """See Formats."""
        return None if self.skips.has(module) else self.usual

    def head(self) -> bool:
        """See Formats."""
        return False


def read(fields: Fields) -> Fp8Formats:
    """From a config.

    Raises:
        ConfigError: tiles or activations that there are none of.
    """
    activations = fields.text("activation_scheme", "dynamic")
    if activations not in ("dynamic", "static"):
        fields.fail("activation_scheme", "must be dynamic or static", activations)
    number = fields.text("fmt", "e4m3")
    if number not in ("e4m3", "float8_e4m3fn"):
        fields.fail("fmt", "must be e4m3", number)
    tile = fields.integers("weight_block_size", low=1, high=1 << 16)
    if tile and not is_tile(tile):
        fields.fail("weight_block_size", "must be two sizes, as [128, 128]", list(tile))
    usual = Fp8((tile[0], tile[1]) if tile else None, static=activations == "static")
    return Fp8Formats(usual, Skips.read(fields, "ignored_layers", "modules_to_not_convert"))
