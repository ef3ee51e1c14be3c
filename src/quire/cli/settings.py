"""Settings from the command line, the environment and a file, all made from the fields of the config classes.

    field max_model_len  ─►  --max-model-len (or --max_model_len)   QUIRE_MAX_MODEL_LEN   max-model-len: in the file

The command line wins over the environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from quire.cli.numbers import whole_number
from quire.config import did_you_mean
from quire.errors import ConfigError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_WORDS: dict[tuple[str, str], Any] = {("max_model_len", "auto"): -1}
"""Words that a field takes instead of a number."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a config class, as a flag.

    Attributes:
        name: the field's.
        group: the heading in --help.
        kind: 'flag', 'integer', 'number', 'text', 'choice', 'json' (an object), 'counts' (name=number, or an object) or
            'texts' (given more than once).
        choices: for 'choice'.
        default: None shows as nothing.
        help: one sentence.
    """

    name: str
    group: str
    kind: str
    choices: tuple[str, ...]
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def negative_flag(self) -> str:
        """The flag that turns it off."""
        return "--no-" + self.name.replace("_", "-")

    @property
    def environment(self) -> str:
        """Its name in the environment."""
        return "QUIRE_" + self.name.upper()

    def parse(self, text: str, where: str) -> Any:
        """A value from text.

        Raises:
            ConfigError: naming `where` the text came from.
        """
        try:
            return self._parse(text)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}.") from None

    def _parse(self, text: str) -> Any:
        if (self.name, text) in _WORDS:
            return _WORDS[self.name, text]
        if self.kind == "flag":
            return _truth(text)
        if self.kind == "integer":
            return whole_number(text)
        if self.kind == "number":
            return _number(text)
        if self.kind == "json":
            return _object(text)
        if self.kind == "choice" and text not in self.choices:
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}")
        if self.kind == "counts":
            return _counts(text)
        return (text,) if self.kind == "texts" else text


def _truth(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{text[:60]!r} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f'{text[:60]!r} is not a JSON object like {{"key": value}}')
    return found


def _counts(text: str) -> dict[str, int]:
    """A mapping from 'image=4,video=0' or a JSON object."""
    try:
        if text.lstrip().startswith("{"):
            return msgspec.json.decode(text, type=dict[str, int])
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {name.strip(): whole_number(number) for name, number in pairs}
    except (ValueError, msgspec.MsgspecError):
        raise ValueError(f'{text!r} is neither name=number nor an object such as {{"image": 4}}') from None


def settings_of(group: type[msgspec.Struct], heading: str) -> list[Setting]:
    """The table of a config class."""
    info = inspect.type_info(group)
    assert isinstance(info, inspect.StructType)
    return [_setting(field, heading) for field in info.fields]


def _setting(field: inspect.Field, heading: str) -> Setting:
    description, type_ = "", field.type
    if isinstance(type_, inspect.Metadata):
        description = (type_.extra_json_schema or {}).get("description", "")
        type_ = type_.type
    if isinstance(type_, inspect.UnionType):
        type_ = next(option for option in type_.types if not isinstance(option, inspect.NoneType))
    kind = next(kind for node, kind in _KINDS if isinstance(type_, node))
    if isinstance(type_, inspect.DictType) and isinstance(type_.value_type, inspect.IntType):
        kind = "counts"
    choices = tuple(str(value) for value in type_.values) if isinstance(type_, inspect.LiteralType) else ()
    default = None if field.default is msgspec.NODEFAULT else field.default  # NODEFAULT: made anew, and empty
    return Setting(field.name, heading, kind, choices, default, description)


_KINDS: tuple[tuple[type[inspect.Type], str], ...] = (
    (inspect.BoolType, "flag"),
    (inspect.IntType, "integer"),
    (inspect.FloatType, "number"),
    (inspect.LiteralType, "choice"),
    (inspect.VarTupleType, "texts"),
    (inspect.DictType, "json"),
    (inspect.StrType, "text"),
)


# ---------------------------------------------------------------------------------------------------------------
# where values come from


def from_environment(settings: Iterable[Setting], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Values of the twins that are set and not empty; what may be given more than once is divided by commas."""
    values = {}
    for setting in settings:
        text = environ.get(setting.environment, "")
        if text:
            if setting.kind == "texts":
                values[setting.name] = tuple(part.strip() for part in text.split(",") if part.strip())
            else:
                values[setting.name] = setting.parse(text, setting.environment)
    return values


def from_file(path: Path, settings: Iterable[Setting]) -> dict[str, Any]:
    """Values of a YAML file: a mapping with the flags' names, '-' and '_' alike.

    Raises:
        ConfigError: unreadable, an unknown name, or a value of the wrong kind.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {str(path)!r} cannot be read: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {str(path)!r} must hold 'name: value' lines.")
    known = {setting.name: setting for setting in settings}
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in known:
            near = did_you_mean(name, set(known)).replace("_", "-")
            raise ConfigError(f"--config {str(path)!r}: unknown setting {str(key)!r}.{near}")
        if value is not None:
            values[name] = _from_yaml(known[name], value, f"--config {str(path)!r}, {key}")
    return values


def _from_yaml(setting: Setting, value: Any, where: str) -> Any:
    if setting.kind == "texts" and isinstance(value, list):
        return tuple(str(item) for item in value)
    if setting.kind == "json" and isinstance(value, dict):
        return value
    if isinstance(value, bool):
        if setting.kind == "flag":
            return value
        raise ConfigError(f"{where}: true or false is no value for this setting.")
    if setting.kind == "counts" and isinstance(value, dict):
        return setting.parse(json.dumps(value, default=str), where)
    if isinstance(value, (dict, list)):
        raise ConfigError(f"{where}: a single value is needed.")
    return setting.parse(str(value), where)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping; earlier layers win."""
    merged: dict[str, Any] = {}
    for layer in reversed(layers):
        merged.update(layer)
    return merged
