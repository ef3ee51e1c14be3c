"""Which files of a folder matter, by their names alone; the folder may be anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch

from quire.errors import ConfigError

SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
"""Configuration and tokenizer."""
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_SHOWN = 12


def is_small(name: str) -> bool:
    """Whether a file is configuration or tokenizer."""
    return any(fnmatch(name, pattern) for pattern in SMALL_FILES)


def only_gguf(files: Iterable[str]) -> bool:
    """Whether a folder has GGUFs and no safetensors."""
    names = list(files)
    return any(name.endswith(".gguf") for name in names) and not any(name.endswith(".safetensors") for name in names)


def choose_gguf(files: Mapping[str, object], quant: str | None, where: str) -> list[str]:
    """The GGUF of a folder, all its parts in order.

    Args:
        files: what lies there, by name, folders within included.
        quant: a word of the name, such as Q4_K_M; None takes the only one.
        where: begins errors.

    Raises:
        ConfigError: none, several, or parts that are missing.
    """
    ggufs = sorted(name for name in files if name.endswith(".gguf") and "mmproj" not in name)
    sets: dict[str, list[str]] = {}
    for name in ggufs:
        sets.setdefault(_SHARD.sub(".gguf", name), []).append(name)
    fitting = [title for title in sets if quant is None or has_word(title, quant)]
    if not sets:
        raise ConfigError(f"{where}: no *.gguf there.")
    if len(fitting) != 1:
        shown = ", ".join(list(fitting or sets)[:_SHOWN]) + (" ..." if len(fitting or sets) > _SHOWN else "")
        if quant is not None and not fitting:
            raise ConfigError(f"{where}: no GGUF with {quant!r} in its name. There are: {shown}.")
        raise ConfigError(f"{where}: several GGUFs; name one as MODEL:{_example(fitting)}. There are: {shown}.")
    return complete(sets[fitting[0]], where)


def complete(names: list[str], where: str) -> list[str]:
    """The parts of one GGUF in order.

    Raises:
        ConfigError: one is missing.
    """
    marks = [_SHARD.search(name) for name in names]
    if not any(marks):
        return names
    count = max(int(mark[2]) for mark in marks if mark)
    there = {int(mark[1]) for mark in marks if mark}
    missing = sorted(set(range(1, count + 1)) - there) if count <= 100_000 else [1]
    if missing or len(names) != count:
        shown = ", ".join(f"{number:05d}" for number in missing[:4]) + (" ..." if len(missing) > 4 else "")
        raise ConfigError(f"{where}: {names[0]} is part of {count} files; missing: {shown or 'none, one is too many'}.")
    return sorted(names)


def siblings(name: str, files: Mapping[str, object]) -> list[str]:
    """The parts that one part of a GGUF belongs to, itself alone if it is whole."""
    mark = _SHARD.search(name)
    if mark is None:
        return [name]
    stem = name[: mark.start()]
    return [other for other in files if (m := _SHARD.search(other)) and other[: m.start()] == stem and m[2] == mark[2]]


def has_word(name: str, word: str) -> bool:
    """Whether a file's name has a word between its ends, dots and dashes; in whichever case."""
    text, word = name.lower(), word.lower()
    at = text.find(word)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(word) : at + len(word) + 1]
        if not before.isalnum() and not after.isalnum() and after != "_":
            return True
        at = text.find(word, at + 1)
    return False


def _example(titles: list[str]) -> str:
    words = re.findall(r"(?i)(?:IQ|Q)\d\w*|BF16|F16|F32", " ".join(titles))
    return words[0] if words else "WORD"
