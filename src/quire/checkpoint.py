"""What the JSON files of a checkpoint say. No torch, and nothing of a checkpoint is ever imported.

    config.json               what the model is: architecture, sizes, rope           required
    generation_config.json    how its makers sample from it                          optional
    *.safetensors             the weights; `quire.worker.loading` reads them

Every value that comes from such a file goes through `Fields`, whose errors name the file and the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from quire.errors import ConfigError

MAX_JSON_BYTES = 64 << 20
MAX_SIZE = 1 << 31
"""No size in a config (vocabulary, width, positions) reaches this."""

_REQUIRED: Any = object()
POSITION_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
"""What files call the number of positions."""
POSITIONS = {"falcon": (2048,)}
"""max_position_embeddings of families whose older files do not name it."""
STRETCHED = ("gemma3_text",)
"""Families that write the stretched length there, whatever their rope."""


@dataclass(frozen=True, slots=True)
class Fields:
    """One JSON object of a checkpoint, read with types and ranges.

    A key that is absent, or null, takes the default; without a default it is an error.
    """

    values: Mapping[str, Any]
    where: str

    def integer(self, key: str, default: Any = _REQUIRED, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number in low..high."""
        value = self._get(key, default)
        if value is default and value is not _REQUIRED:
            return value  # type: ignore[no-any-return]
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"must be a whole number in {low}..{high}", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED, *, low: float = 0.0, high: float = 1e30) -> float:
        """A finite number in low..high."""
        value = self._get(key, default)
        if value is default and value is not _REQUIRED:
            return value  # type: ignore[no-any-return]
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            self.fail(key, f"must be a number in {low:g}..{high:g}", value)
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default)
        if type(value) is not bool:
            self.fail(key, "must be true or false", value)
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._get(key, default)
        if value is default and value is not _REQUIRED:
            return value  # type: ignore[no-any-return]
        if not isinstance(value, str):
            self.fail(key, "must be a string", value)
        return value

    def integers(self, key: str, *, low: int = 0, high: int = MAX_SIZE) -> tuple[int, ...]:
        """One whole number or a list of them; absent is none."""
        value = self._get(key, ())
        found = tuple(value) if isinstance(value, list | tuple) else (value,)
        if any(type(item) is not int or not low <= item <= high for item in found):
            self.fail(key, f"must be a whole number in {low}..{high}, or a list of them", value)
        return found

    def numbers(self, key: str, *, low: float = 0.0, high: float = 1e30) -> tuple[float, ...]:
        """A list of finite numbers."""
        value = self._get(key, _REQUIRED)
        if not isinstance(value, list | tuple) or any(type(item) not in (int, float) for item in value):
            self.fail(key, "must be a list of numbers", value)
        if not all(low <= item <= high for item in value):
            self.fail(key, f"must have numbers in {low:g}..{high:g}", value)
        return tuple(float(item) for item in value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; absent is none."""
        value = self._get(key, ())
        if not isinstance(value, list | tuple) or any(not isinstance(item, str) for item in value):
            self.fail(key, "must be a list of strings", value)
        return tuple(value)

    def section(self, key: str) -> Fields | None:
        """An object inside this one; absent or empty is None."""
        value = self._get(key, None)
        if value is not None and not isinstance(value, dict):
            self.fail(key, "must be an object", value)
        return Fields(value, f"{self.where}: {key}") if value else None

    def has(self, key: str) -> bool:
        """Whether the key is there, null or not."""
        return key in self.values

    def fail(self, key: str, wanted: str, value: Any) -> NoReturn:
        """Raise a ConfigError about a key."""
        shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:60] + "..."
        raise ConfigError(f"{self.where}: {key} {wanted}, got {shown}.")

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise ConfigError(f"{self.where}: {key} is missing.")
        return default


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What config.json and generation_config.json say, as far as every model has it.

    Attributes:
        folder: the checkpoint.
        architectures: class names in the checkpoint's own words; the first known one is taken.
        vocab_size: number of logits.
        max_model_len: positions that the rotary embedding was made for, its stretching included.
        sliding_window: positions a token sees in windowed layers, if the config names any.
        eos_token_ids: end tokens of both files, in order, each once.
        bos_token_id: begin token, if named.
        dtype: number format of the stored weights ('bfloat16', 'float16', 'float32'), if named.
        sampling: the makers' values for temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens.
        config: config.json, for the model that reads the rest.
    """

    folder: Path
    architectures: tuple[str, ...]
    vocab_size: int
    max_model_len: int
    sliding_window: int | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: str | None
    sampling: Mapping[str, float | int]
    config: Fields


def read_facts(folder: Path, overrides: Mapping[str, Any] | None = None) -> ModelFacts:
    """Read a checkpoint's configuration.

    Args:
        folder: the checkpoint.
        overrides: keys of config.json that have other values (--hf-overrides); objects go into objects.

    Raises:
        ConfigError: no config.json, broken JSON, or a value that cannot be, with file and key.
    """
    config = _read_object(folder / "config.json", required=True)
    if overrides:
        config = Fields(_overridden(config.values, overrides), f"{config.where} with --hf-overrides")
    generation = _read_object(folder / "generation_config.json", required=False)
    architectures = config.texts("architectures")
    if not architectures:
        raise ConfigError(f"{config.where}: architectures is missing; it names the kind of model.")
    text = language_part(config)
    text.texts("layer_types")
    vocab_size = text.integer("vocab_size")
    eos = (*text.integers("eos_token_id"), *generation.integers("eos_token_id"))
    dtypes = [part.text(key, None) for part in (config, text) for key in ("dtype", "torch_dtype")]
    dtype = next(filter(None, dtypes), None)
    return ModelFacts(
        folder=folder,
        architectures=architectures,
        vocab_size=vocab_size,
        max_model_len=_max_model_len(text),
        sliding_window=text.integer("sliding_window", None, low=0) or None,
        eos_token_ids=tuple(dict.fromkeys(eos)),
        bos_token_id=next(iter((*text.integers("bos_token_id"), *generation.integers("bos_token_id"))), None),
        dtype=dtype.removeprefix("torch.") if dtype else None,
        sampling=_sampling(generation),
        config=config,
    )


ABSENT_SIZES: dict[str, dict[str, int]] = {
    "llama": {"vocab_size": 32_000, "intermediate_size": 11_008, "max_position_embeddings": 2048},
    "mistral": {"vocab_size": 32_000, "intermediate_size": 14_336, "max_position_embeddings": 131_072},
    "qwen2": {"vocab_size": 151_936, "intermediate_size": 22_016, "max_position_embeddings": 32_768},
}
"""What a language model inside of another's config need not name, by its model_type; beside what all of these have:"""
_ABSENT_IN_ALL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}


def language_part(config: Fields) -> Fields:
    """The settings of the language model: config.json itself, or its text_config where there are other parts beside."""
    text = config.section("text_config")
    if text is None:
        return config
    absent = ABSENT_SIZES.get(text.text("model_type", ""), {})
    values = {**(absent and _ABSENT_IN_ALL), **absent, **{k: v for k, v in text.values.items() if v is not None}}
    tied = config.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False)
    nulls = {key: None for key, value in text.values.items() if value is None and key not in values}
    return Fields({**nulls, **values, "tie_word_embeddings": tied}, text.where)


def rope_fields(config: Fields, layer_type: str | None = None) -> Fields:
    """The rotary embedding's settings under one name, whichever way the config writes them.

    rope_parameters {rope_type, rope_theta, ...}              newer; or one such object per type of layer
    rope_theta, rope_scaling {type or rope_type, factor, ...}  older
    """
    section = config.section("rope_parameters") or config.section("rope_scaling")
    if section and layer_type is not None and section.has(layer_type):
        section = section.section(layer_type)
    values = dict(section.values) if section else {}
    values.setdefault("rope_type", values.get("type") or "default")
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        if config.values.get(key) is not None:
            values.setdefault(key, config.values[key])
    return Fields(values, section.where if section else config.where)


def _overridden(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(values)
    for key, value in overrides.items():
        old = both.get(key)
        both[key] = _overridden(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _max_model_len(config: Fields) -> int:
    """Length that the rope reaches.

    Llama 3 and newer files write the stretched length; older linear and YaRN ones write that of the first training,
    and stretch it by `factor`.
    """
    family = config.text("model_type", "")
    named = next((key for key in POSITION_KEYS if config.values.get(key) is not None), POSITION_KEYS[0])
    positions = config.integer(named, *POSITIONS.get(family, ()))
    rope = rope_fields(config)
    kind = rope.text("rope_type")
    if kind not in ("linear", "dynamic", "yarn") or family in STRETCHED:
        return positions
    factor = rope.number("factor", 1.0, low=1.0, high=65536)
    if kind != "yarn":
        return int(positions * factor)
    return max(positions, int(rope.integer("original_max_position_embeddings", positions) * factor))


def _sampling(generation: Fields) -> dict[str, float | int]:
    numbers = {
        "temperature": generation.number("temperature", None, high=1e6),
        "top_p": generation.number("top_p", None, high=1),
        "top_k": generation.integer("top_k", None, low=-1),
        "min_p": generation.number("min_p", None, high=1),
        "repetition_penalty": generation.number("repetition_penalty", None, low=1e-6, high=1e6),
        "max_new_tokens": generation.integer("max_new_tokens", None),
    }
    return {key: value for key, value in numbers.items() if value is not None}


def _read_object(path: Path, *, required: bool) -> Fields:
    return Fields(read_json(path, required=required), str(path))


def read_json(path: Path, *, required: bool) -> dict[str, Any]:
    """A JSON file that holds an object; {} if it may be absent and is.

    Raises:
        ConfigError: absent, unreadable, too large or broken, with the path.
    """
    try:
        if not required and not path.exists():
            return {}
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes of JSON, more than {MAX_JSON_BYTES}.")
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; a model folder needs it.") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or 'cannot be read'}.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: broken JSON ({str(error) or type(error).__name__}).") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: must hold a JSON object, holds a {type(found).__name__}.")
    return found
