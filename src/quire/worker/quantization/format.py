"""What a format of a checkpoint is, and how one is chosen for every module. One file per format beside this one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

from quire.checkpoint import Fields
from quire.errors import StartupError
from quire.worker.kernels.weights import AnyWeights, PlainWeights
from quire.worker.quantization.pieces import FLOATS, Piece, Read


class FormatError(StartupError):
    """Tensors that do not go together: a part of a sentence, which the loader completes with the layer's name."""


class Format(Protocol):
    """How one module's weights lie in a checkpoint."""

    name: str
    marker: tuple[str, tuple[torch.dtype, ...]]
    """A tensor by which a module of this format is told from a plain one: its suffix and formats."""

    def pieces(self) -> dict[str, Piece]:
        """The tensors by suffix, without the bias."""

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """Bring them into a form that kernels know.

        Args:
            read: what was read.
            dtype: of the activations.

        Raises:
            FormatError: they do not go together.
        """


class Formats(Protocol):
    """What a checkpoint's config says about all of its modules."""

    summary: str
    """For the start's log lines."""

    def of(self, module: str) -> Format | None:
        """The format of a module, by its name in the checkpoint; None is plain."""

    def head(self) -> bool:
        """Whether the output head has it as well, as far as the config says so."""


class Plain:
    """A module that is not quantized."""

    name = "plain"
    marker = ("weight", FLOATS)

    def pieces(self) -> dict[str, Piece]:
        """The matrix."""
        return {"weight": Piece(lambda outs, inputs: (outs, inputs), FLOATS)}

    def weights(self, read: Read, outs: int, inputs: int, dtype: torch.dtype) -> AnyWeights:
        """As it is."""
        return PlainWeights(read["weight"].to(dtype))


@dataclass(frozen=True, slots=True)
class Skips:
    """Modules that a config excludes: names, runs of whole words of a name, or regular expressions after `re:`."""

    entries: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]

    @staticmethod
    def read(fields: Fields, *keys: str) -> Skips:
        """From the first of these keys that is there.

        Raises:
            ConfigError: not a list of names, or a pattern that is none.
        """
        entries: tuple[str, ...] = ()
        for key in keys:
            entries = entries or fields.texts(key)
        patterns = []
        for entry in entries:
            if entry.startswith("re:"):
                patterns.append(pattern(entry.removeprefix("re:"), fields, "/".join(keys)))
        return Skips(tuple(entry for entry in entries if not entry.startswith("re:")), tuple(patterns))

    def has(self, module: str) -> bool:
        """Whether a module is excluded, by its name in the checkpoint."""
        if any(found.match(module) for found in self.patterns):
            return True
        return any(has_words(module, entry) for entry in self.entries)


def pattern(text: str, fields: Fields, key: str) -> re.Pattern[str]:
    """A regular expression of a config.

    Raises:
        ConfigError: it is none.
    """
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError):
        fields.fail(key, "must hold regular expressions", text)


def has_words(name: str, words: str) -> bool:
    """Whether a run of whole words is in a dotted name."""
    return f".{words.strip('.')}." in f".{name}."


def one_of(fields: Fields, keys: Iterable[str], allowed: tuple[int, ...], default: int | None = None) -> int:
    """A whole number under one of several keys.

    Raises:
        ConfigError: missing, or not among those allowed.
    """
    names = tuple(keys)
    key = next((name for name in names if fields.values.get(name) is not None), names[0])
    value = fields.integer(key, *(() if default is None else (default,)), low=-1)
    if value not in allowed:
        fields.fail(key, f"must be one of {', '.join(map(str, allowed))}", value)
    return value
