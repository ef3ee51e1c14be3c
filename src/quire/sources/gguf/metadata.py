"""Values of a GGUF header, asked for by type: a wrong one is one line with the file and the key."""

from __future__ import annotations

import math
from typing import Any, NoReturn

from quire.checkpoint import MAX_SIZE
from quire.errors import ConfigError
from quire.sources.gguf.header import GGUFHeader, GGUFTensor

_REQUIRED: Any = object()


class Metadata:
    """The headers of one GGUF, of which the first has the values and all have tensors.

    Args:
        headers: of its files, in order.
    """

    def __init__(self, headers: list[GGUFHeader]) -> None:
        self.where = str(headers[0].location)
        self.headers = headers
        self._values = headers[0].values
        self.tensors: dict[str, GGUFTensor] = {}
        for header in headers:
            for tensor in header.tensors:
                if tensor.name in self.tensors:
                    raise ConfigError(f"{header.location}: tensor {tensor.name!r} is in another part as well.")
                self.tensors[tensor.name] = tensor
        self._check_parts()
        self.architecture = self.text("general.architecture")

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._values

    def integer(self, key: str, default: Any = _REQUIRED, *, low: int = 0, high: int = MAX_SIZE) -> Any:
        """A whole number in low..high; a list of equal ones is one."""
        value = self._get(key, default)
        if key not in self._values:
            return value
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            self.fail(key, "differs from layer to layer, which is not supported", value)
        if type(value) is not int or not low <= value <= high:
            self.fail(key, f"must be a whole number in {low}..{high}", value)
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        """A finite number."""
        value = self._get(key, default)
        if key in self._values and (type(value) not in (int, float) or not math.isfinite(value)):
            self.fail(key, "must be a number", value)
        return value

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        """true or false."""
        value = self._get(key, default)
        if key in self._values and type(value) is not bool:
            self.fail(key, "must be true or false", value)
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        """A text."""
        value = self._get(key, default)
        if key in self._values and not isinstance(value, str):
            self.fail(key, "must be a text", value)
        return value

    def items(self, key: str, kind: type, default: Any = _REQUIRED) -> Any:
        """A list of texts or numbers, all of one kind."""
        value = self._get(key, default)
        if key in self._values and (not isinstance(value, list) or any(type(item) is not kind for item in value)):
            self.fail(key, f"must be a list of {kind.__name__}", value)
        return value

    def metadata_list(self, key: str) -> list[Any] | None:
        """A list of anything, or None where it is absent or a single value."""
        value = self._values.get(key)
        return value if isinstance(value, list) else None

    def fail(self, key: str, wanted: str, value: Any) -> NoReturn:
        """Raise a ConfigError about a key."""
        raise ConfigError(f"{self.where}: {key} {wanted}, got {repr(value)[:60]}.")

    def _get(self, key: str, default: Any) -> Any:
        if key in self._values:
            return self._values[key]
        if default is _REQUIRED:
            raise ConfigError(f"{self.where}: {key} is missing.")
        return default

    def _check_parts(self) -> None:
        count = self.integer("split.count", 1, high=100_000)
        if count not in (0, len(self.headers)) and not (count == 1 and len(self.headers) == 1):
            raise ConfigError(f"{self.where}: split.count is {count}, there are {len(self.headers)} files.")
        whole = self.integer("split.tensors.count", len(self.tensors))
        if whole != len(self.tensors):
            raise ConfigError(f"{self.where}: {whole} tensors are promised, {len(self.tensors)} are there.")
