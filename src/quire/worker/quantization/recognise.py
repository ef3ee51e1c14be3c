"""Whether a checkpoint is quantized, and how: what its config files say.

config.json            quantization_config, also inside text_config; or compression_config
hf_quant_config.json   ModelOpt
quantize_config.json   GPTQ, older AWQ
quant_config.json      older AWQ, SqueezeLLM
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from quire.checkpoint import Fields, read_json
from quire.errors import ConfigError
from quire.worker.quantization import awq, bitsandbytes, compressed, fp8, gptq, modelopt, squeezellm
from quire.worker.quantization.format import Formats

READERS: dict[str, Callable[[Fields], Formats]] = {
    "awq": awq.read,
    "bitsandbytes": bitsandbytes.read,
    "compressed-tensors": compressed.read,
    "fbgemm_fp8": fp8.read,
    "fp8": fp8.read,
    "gptq": gptq.read,
    "modelopt": modelopt.read,
    "squeezellm": squeezellm.read,
}
"""quant_method to what reads the rest."""
SAME = {
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
    "compressed_tensors": "compressed-tensors",
    "modelopt_fp4": "modelopt",
    "modelopt_fp8": "modelopt",
    "fbgemm_fp8": "fp8",
}
"""Other names of the same."""
FILES = (("hf_quant_config.json", "modelopt"), ("quantize_config.json", "gptq"), ("quant_config.json", "awq"))
SIGNS = (
    ("config_groups", "compressed-tensors"),
    ("quant_algo", "modelopt"),
    ("w_bit", "awq"),
    ("wbits", "squeezellm"),
    ("load_in_4bit", "bitsandbytes"),
    ("load_in_8bit", "bitsandbytes"),
    ("bits", "gptq"),
)
"""A key by which a method is told that no quant_method names."""


def recognise(folder: Path, config: Fields, wanted: str | None) -> Formats | None:
    """The formats of a checkpoint; None if it is not quantized.

    Args:
        config: its config.json.
        wanted: the method that `--quantization` names; it must be the one of the config, where there is one.

    Raises:
        ConfigError: a method that is not known, not the one wanted, or with values that cannot be.
    """
    found = _section(folder, config)
    if found is None:
        return None
    fields, usual = found
    method = fields.text("quant_method", None) or next((m for key, m in SIGNS if fields.has(key)), usual)
    if method is None:
        raise ConfigError(f"{fields.where}: quant_method is missing.")
    method = method.lower()
    if SAME.get(method, method) not in READERS:
        fields.fail("quant_method", f"must be one of {', '.join(READERS)}", method)
    method = SAME.get(method, method)
    if wanted is not None and SAME.get(wanted, wanted) != method:
        raise ConfigError(f"--quantization {wanted}: {fields.where} says {method}. Leave --quantization out.")
    return READERS[method](fields)


def _section(folder: Path, config: Fields) -> tuple[Fields, str | None] | None:
    """The section that says how, and the method where it does not."""
    for outer in (config, config.section("text_config")):
        if outer is None:
            continue
        for key, usual in (("quantization_config", None), ("compression_config", "compressed-tensors")):
            section = outer.section(key)
            if section is not None:
                return section, usual
    for name, usual in FILES:
        values = read_json(folder / name, required=False)
        if values:
            return Fields(values, str(folder / name)), usual
    return None
