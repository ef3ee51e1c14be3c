"""Token ids to draw prompts from, and the text side of a tokenizer where prompts must be text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quire.checkpoint import read_facts
from quire.errors import ConfigError
from quire.sources import resolve

UNKNOWN_VOCABULARY = (100, 32_000)
"""Ids that practically every model has, for servers whose tokenizer is not at hand."""
MAX_WORDS = 8_000
_WORD = re.compile(r"[A-Za-z]+")


class Text(Protocol):
    """What datasets need of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the special tokens around it."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids."""


class Vocabulary:
    """Owns the ids that made-up prompts consist of.

    Args:
        ids: allowed token ids; special tokens left out where they are known.
        text: encodes and decodes; None where no tokenizer is at hand.
    """

    def __init__(self, ids: NDArray[np.int64], text: Text | None = None) -> None:
        self.ids = ids
        self.text = text
        self._words: list[str] | None = None

    def draw(self, rng: np.random.Generator, count: int) -> list[int]:
        """Random token ids."""
        found: list[int] = rng.choice(self.ids, count).tolist()
        return found

    def words(self) -> list[str]:
        """Words of the vocabulary, each with a space before it; none if it has no such tokens."""
        if self._words is None:
            decode = self.need_text("text prompts").decode
            step = max(1, len(self.ids) // MAX_WORDS)
            texts = (decode([token_id]).strip() for token_id in self.ids[::step].tolist())
            self._words = [" " + text for text in texts if _WORD.fullmatch(text)]
        return self._words

    def need_text(self, what: str) -> Text:
        """The tokenizer.

        Raises:
            ConfigError: there is none.
        """
        if self.text is None:
            raise ConfigError(f"{what} need a tokenizer: name its folder or Hugging Face name with --tokenizer.")
        return self.text


def vocabulary_of(tokenizer: str | None, vocab_size: int | None, warn: Callable[[str], None]) -> Vocabulary:
    """The vocabulary of a tokenizer, or a guess if there is none to be had.

    Args:
        tokenizer: folder or Hugging Face name.
        vocab_size: ids end below it, whatever the tokenizer says.
        warn: is told of a guess.
    """
    try:
        folder = resolve(tokenizer, weights=False) if tokenizer else None
        if folder is not None and (folder / "tokenizer.json").is_file():
            return _from_tokenizer(folder, vocab_size)
        size = vocab_size or (read_facts(folder).vocab_size if folder is not None else None)
    except ConfigError as error:
        if vocab_size is None:
            warn(f"{error.message} Prompts are drawn from ids {_range(UNKNOWN_VOCABULARY)}; see --tokenizer.")
        size = vocab_size
    low, high = UNKNOWN_VOCABULARY if size is None else (min(100, size // 4), size)
    return Vocabulary(np.arange(low, high))


def _range(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}..{bounds[1] - 1}"


def _from_tokenizer(folder: Path, vocab_size: int | None) -> Vocabulary:
    import tokenizers

    try:
        core = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:
        raise ConfigError(f"{folder / 'tokenizer.json'} cannot be read: {error}") from error
    core.no_truncation()
    core.no_padding()
    special = [i for i, token in core.get_added_tokens_decoder().items() if token.special]
    size = min(core.get_vocab_size(), vocab_size or core.get_vocab_size())
    ids = np.setdiff1d(np.arange(size), np.array(special, dtype=np.int64))
    return Vocabulary(ids, _TokenizersText(core))


class _TokenizersText:
    def __init__(self, core: Any) -> None:
        self._core = core

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._core.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._core.decode(list(ids), skip_special_tokens=False)
        return text
