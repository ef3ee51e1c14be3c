"""A config.json out of a GGUF's metadata."""

from __future__ import annotations

import math
import struct
from typing import Any

from quire.errors import ConfigError
from quire.sources.files import open_reader
from quire.sources.gguf.architectures import INTEGERS, OPTIONAL_INTEGERS, Config, find
from quire.sources.gguf.metadata import Metadata

FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MAX_FACTORS = 1 << 12


def make_config(data: Metadata) -> Config:
    """What a checkpoint's config.json would say.

    Raises:
        ConfigError: an unknown architecture, or a value that is missing or cannot be.
    """
    row = find(data)
    prefix = data.architecture
    config: Config = {
        "architectures": [row.name],
        "model_type": row.model_type,
        "vocab_size": _vocab_size(data),
        "torch_dtype": _dtype(data),
        "tie_word_embeddings": "output.weight" not in data.tensors,
    }
    for key, name in INTEGERS.items():
        config[key] = data.integer(f"{prefix}.{name}", low=1)
    for key, name in OPTIONAL_INTEGERS.items():
        value = data.integer(f"{prefix}.{name}", None, low=1)
        if value is not None:
            config[key] = value
    for key, name in (("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("rope_theta", "rope.freq_base")):
        value = data.number(f"{prefix}.{name}", None)
        if value is not None:
            config[key] = _short(value)
    config |= _rope(data, config)
    config |= {key: _short(value) for key, value in row.more(data, config).items()}
    return {key: value for key, value in config.items() if value is not None}


def _vocab_size(data: Metadata) -> int:
    table = data.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ConfigError(f"{data.where}: no tensor token_embd.weight [tokens, width] in it; is it a language model?")
    return table.shape[0]


def _dtype(data: Metadata) -> str:
    """The number format of most bytes; what was quantized becomes bfloat16, whose range holds every scale."""
    sizes: dict[str, int] = {}
    for tensor in data.tensors.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.end - tensor.start
    return FLOATS.get(max(sizes, key=lambda name: sizes[name]), "bfloat16")


def _rope(data: Metadata, config: Config) -> Config:
    """How the rope is stretched; factors of single frequencies are tensors."""
    prefix = data.architecture
    original = data.integer(f"{prefix}.rope.scaling.original_context_length", None, low=1)
    attention = data.number(f"{prefix}.rope.scaling.attn_factor", None)
    if "rope_freqs.weight" in data.tensors:  # Llama 3.1: the same for all lengths, and no change of scale
        factors = _numbers(data, "rope_freqs.weight")
        scaling = {"rope_type": "longrope", "long_factor": factors, "short_factor": factors, "attention_factor": 1.0}
        return {"rope_scaling": scaling}
    if "rope_factors_long.weight" in data.tensors:
        scaling = {
            "rope_type": "longrope",
            "long_factor": _numbers(data, "rope_factors_long.weight"),
            "short_factor": _numbers(data, "rope_factors_short.weight"),
        }
        if attention is not None:
            scaling["attention_factor"] = _short(attention)
        return {"rope_scaling": scaling, "original_max_position_embeddings": original}
    kind = data.text(f"{prefix}.rope.scaling.type", "none")
    factor = data.number(f"{prefix}.rope.scaling.factor", data.number(f"{prefix}.rope.scale_linear", 1.0))
    if kind == "none" and factor != 1.0 and data.has(f"{prefix}.rope.scale_linear"):
        kind = "linear"
    if kind in ("none", "longrope") or factor == 0:
        return {}
    if kind not in ("linear", "yarn"):
        data.fail(f"{prefix}.rope.scaling.type", "must be none, linear, yarn or longrope", kind)
    scaling = {"rope_type": kind, "factor": _short(factor)}
    if kind == "yarn" and original is not None:
        scaling["original_max_position_embeddings"] = original
    if kind == "yarn" and attention is not None:
        scaling["attention_factor"] = _short(attention)
    return {"rope_scaling": scaling}


def _numbers(data: Metadata, name: str) -> list[float]:
    """A small tensor's numbers."""
    for header in data.headers:
        for tensor in header.tensors:
            if tensor.name == name:
                if tensor.type != "F32" or math.prod(tensor.shape) > MAX_FACTORS:
                    raise ConfigError(f"{header.location}: tensor {name} must hold at most {MAX_FACTORS} F32.")
                reader = open_reader(header.location)
                try:
                    content = reader.read(tensor.start, tensor.end - tensor.start)
                finally:
                    reader.close()
                found = struct.unpack(f"<{len(content) // 4}f", content)
                if not all(map(math.isfinite, found)):
                    raise ConfigError(f"{header.location}: tensor {name} holds what is no number.")
                return [_short(value) for value in found]
    raise ConfigError(f"{data.where}: tensor {name} is missing.")


def _short(value: Any) -> Any:
    """The decimal number that a 32-bit one was made from: 9.99999974e-06 was 1e-05."""
    if not isinstance(value, float) or not math.isfinite(value) or value == 0:
        return value
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if abs(short) < 3.4e38 and struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value
