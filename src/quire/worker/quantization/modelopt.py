"""Configs of NVIDIA's ModelOpt, in config.json or hf_quant_config.json: see `floats` for the tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import translate

from quire.checkpoint import Fields
from quire.worker.quantization.floats import Fp8, Nvfp4
from quire.worker.quantization.format import Format, Skips

KINDS: dict[str, Format] = {
    "FP8": Fp8(static=True),
    "FP8_PER_CHANNEL_PER_TOKEN": Fp8(),
    "FP8_PB_WO": Fp8(tile=(128, 128)),
    "NVFP4": Nvfp4("weight_scale_2", reciprocal=False, weight="weight"),
    "W4A16_NVFP4": Nvfp4("weight_scale_2", reciprocal=False, weight="weight"),
}


@dataclass(frozen=True, slots=True)
class ModelOptFormats:
    """A whole checkpoint's."""

    usual: Format
    skips: Skips
    summary: str

    def of(self, module: str) -> Format | None:
        """See Formats."""
        return None if self.skips.has(module) else self.usual

    def head(self) -> bool:
        """See Formats."""
        return not self.skips.has("lm_head")


def read(fields: Fields) -> ModelOptFormats:
    """From a config.

    Raises:
        ConfigError: an algorithm that is not in the table.
    """
    fields = fields.section("quantization") or fields
    kind = fields.text("quant_algo")
    if kind not in KINDS:
        fields.fail("quant_algo", f"must be one of {', '.join(KINDS)}", kind)
    names = fields.texts("exclude_modules") or fields.texts("ignore")
    wild = tuple(re.compile(translate(name)) for name in names if "*" in name)
    skips = Skips(tuple(name for name in names if "*" not in name), wild)
    return ModelOptFormats(KINDS[kind], skips, f"modelopt {kind}")
