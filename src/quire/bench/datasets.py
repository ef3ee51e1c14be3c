"""Prompts and output lengths: made up, or read from files. The same options and seed give the same requests.

random              [ prefix shared by all | tokens of its own ]
prefix_repetition   [ one of a few shared prefixes | tokens of its own ]
sharegpt            JSON list of {"conversations": [{"from", "value"}, ...]}: first turn and length of the second
custom              a JSON object per line: {"prompt": text or token ids} or {"messages": [...]}, output_tokens optional
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np

from quire.bench.options import DatasetOptions
from quire.bench.vocabulary import Vocabulary
from quire.errors import ConfigError

MIN_SHAREGPT_LEN = 4
MAX_SHAREGPT_PROMPT, MAX_SHAREGPT_TOTAL = 1024, 2048
"""Conversations outside are left out, as every published ShareGPT figure does."""

MAX_ROUNDS = 8
"""Tries at a text of exactly so many tokens; `prompt_len` holds what came of it."""

Prompt = str | list[int] | list[dict[str, Any]]
"""Text, token ids, or the messages of a chat."""


class Sample(msgspec.Struct, frozen=True):
    """One request.

    Attributes:
        prompt: text, token ids or messages.
        prompt_len: tokens of it; 0 where nobody counted.
        output_len: tokens to ask for.
    """

    prompt: Prompt
    prompt_len: int
    output_len: int


def build(options: DatasetOptions, vocabulary: Callable[[], Vocabulary], seed: int, *, as_text: bool) -> list[Sample]:
    """The requests of a run.

    Args:
        options: which dataset, how long, how many.
        vocabulary: called if the dataset needs one.
        seed: of every draw.
        as_text: made-up prompts are texts instead of token ids.

    Raises:
        ConfigError: a file or line that cannot be used, or options that contradict.
    """
    rng = np.random.default_rng(seed)
    return _BUILDERS[options.dataset_name](options, vocabulary, rng, as_text)


# ---------------------------------------------------------------------------------------------------------------
# made up


def _random(
    options: DatasetOptions, vocabulary: Callable[[], Vocabulary], rng: np.random.Generator, as_text: bool
) -> list[Sample]:
    count, ratio = options.num_prompts, options.random_range_ratio
    input_lens = _lengths(rng, options.input_len or options.random_input_len, ratio, count)
    output_lens = _lengths(rng, options.output_len or options.random_output_len, ratio, count)
    maker = _Maker(vocabulary(), rng, as_text)
    prefix = maker.make(options.random_prefix_len)
    return [
        maker.sample(prefix, maker.make(input_len), output_len)
        for input_len, output_len in zip(input_lens, output_lens, strict=True)
    ]


def _lengths(rng: np.random.Generator, length: int, ratio: float, count: int) -> list[int]:
    """Evenly spread over length * (1 - ratio) .. length * (1 + ratio), at least 1."""
    low, high = max(1, math.floor(length * (1 - ratio))), math.ceil(length * (1 + ratio))
    lengths: list[int] = rng.integers(low, high, count, endpoint=True).tolist()
    return lengths


def _prefix_repetition(
    options: DatasetOptions, vocabulary: Callable[[], Vocabulary], rng: np.random.Generator, as_text: bool
) -> list[Sample]:
    count, num_prefixes = options.num_prompts, options.prefix_repetition_num_prefixes
    if num_prefixes > count:
        raise ConfigError(
            f"--prefix-repetition-num-prefixes {num_prefixes} is more than --num-prompts {count}:"
            " each prefix needs a prompt."
        )
    maker = _Maker(vocabulary(), rng, as_text)
    prefixes = [maker.make(options.prefix_repetition_prefix_len) for _ in range(num_prefixes)]
    suffix_len = options.input_len or options.prefix_repetition_suffix_len
    output_len = options.output_len or options.prefix_repetition_output_len
    samples = [maker.sample(prefixes[i % num_prefixes], maker.make(suffix_len), output_len) for i in range(count)]
    return samples if options.disable_shuffle else [samples[i] for i in rng.permutation(count)]


class _Maker:
    """Makes prompts of a number of tokens, as token ids or as text of random words."""

    def __init__(self, vocabulary: Vocabulary, rng: np.random.Generator, as_text: bool) -> None:
        self._vocabulary = vocabulary
        self._rng = rng
        self._text = vocabulary.need_text("text prompts") if as_text else None

    def make(self, count: int) -> list[int]:
        """Part of a prompt."""
        if self._text is None or not count:
            return self._vocabulary.draw(self._rng, count)
        return self._text.encode(self._words(count))[:count]

    def sample(self, prefix: list[int], own: list[int], output_len: int) -> Sample:
        """The request of a prompt of two parts."""
        ids = prefix + own
        if self._text is None:
            return Sample(ids, len(ids), output_len)
        # Joined and cut text may be read as other tokens; a few rounds of cutting and adding settle that.
        target, text = len(ids), self._text.decode(ids)
        for _ in range(MAX_ROUNDS):
            ids = self._text.encode(text)
            if len(ids) == target:
                break
            text = self._text.decode(ids[:target]) if len(ids) > target else text + self._words(target - len(ids))
        return Sample(text, len(ids), output_len)

    def _words(self, count: int) -> str:
        """Text of at least so many tokens."""
        words = self._vocabulary.words()
        if not words:
            assert self._text is not None
            return self._text.decode(self._vocabulary.draw(self._rng, count))
        return "".join([words[i] for i in self._rng.integers(0, len(words), count)])


# ---------------------------------------------------------------------------------------------------------------
# from files


def _sharegpt(
    options: DatasetOptions, vocabulary: Callable[[], Vocabulary], rng: np.random.Generator, as_text: bool
) -> list[Sample]:
    path = _path(options)
    try:
        content = msgspec.json.decode(_read(path))
    except msgspec.DecodeError as error:
        raise ConfigError(f"--dataset-path {str(path)!r}: broken JSON ({error}).") from None
    if not isinstance(content, list):
        raise ConfigError(f"--dataset-path {str(path)!r}: a JSON list of conversations is needed.")
    encode = vocabulary().need_text("sharegpt's lengths").encode
    wanted = options.output_len or options.sharegpt_output_len
    turns = [turns for entry in content if (turns := _first_turns(entry)) is not None]
    order = range(len(turns)) if options.disable_shuffle else rng.permutation(len(turns))
    samples = []
    for i in order:
        question, answer = turns[int(i)]
        prompt_len, answer_len = len(encode(question)), len(encode(answer))
        output_len = wanted or answer_len
        too_short = prompt_len < MIN_SHAREGPT_LEN or (wanted is None and answer_len < MIN_SHAREGPT_LEN)
        if too_short or prompt_len > MAX_SHAREGPT_PROMPT or prompt_len + output_len > MAX_SHAREGPT_TOTAL:
            continue
        samples.append(Sample(question, prompt_len, output_len))
        if len(samples) == options.num_prompts:
            break
    return _enough(samples, options, path, "conversation of usable length")


def _first_turns(entry: Any) -> tuple[str, str] | None:
    """(question, answer) of a conversation with at least two turns."""
    turns = entry.get("conversations") or entry.get("conversation") if isinstance(entry, dict) else None
    if not isinstance(turns, list) or len(turns) < 2:
        return None
    values = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
    if not isinstance(values[0], str) or not isinstance(values[1], str):
        return None
    return values[0], values[1]


def _custom(
    options: DatasetOptions, vocabulary: Callable[[], Vocabulary], rng: np.random.Generator, as_text: bool
) -> list[Sample]:
    path = _path(options)
    samples = list(_lines(path, options))
    if not options.disable_shuffle:
        samples = [samples[i] for i in rng.permutation(len(samples))]
    return _enough(samples[: options.num_prompts], options, path, "line")


def _lines(path: Path, options: DatasetOptions) -> Iterator[Sample]:
    for number, line in enumerate(_read(path).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"--dataset-path {str(path)!r}, line {number}"
        try:
            entry = msgspec.json.decode(line)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{where}: broken JSON ({error}).") from None
        prompt = entry.get("prompt", entry.get("messages")) if isinstance(entry, dict) else None
        if not _is_prompt(prompt):
            raise ConfigError(f"{where}: needs 'prompt' (text or token ids) or 'messages' (a list of objects).")
        output_len = options.output_len or entry.get("output_tokens", options.custom_output_len)
        if type(output_len) is not int or output_len < 1:
            raise ConfigError(f"{where}: output_tokens must be a whole number of at least 1, got {output_len!r}.")
        ids = isinstance(prompt, list) and isinstance(prompt[0], int)
        yield Sample(prompt, len(prompt) if ids else 0, output_len)


def _is_prompt(value: Any) -> TypeGuard[Prompt]:
    if isinstance(value, str):
        return bool(value)
    if not isinstance(value, list) or not value:
        return False
    return all(type(item) is int and item >= 0 for item in value) or all(isinstance(item, dict) for item in value)


def _enough(samples: list[Sample], options: DatasetOptions, path: Path, what: str) -> list[Sample]:
    """As many samples as asked for: those there are, over again."""
    if not samples:
        raise ConfigError(f"--dataset-path {str(path)!r} has no {what}.")
    if len(samples) >= options.num_prompts or options.no_oversample:
        return samples
    return [samples[i % len(samples)] for i in range(options.num_prompts)]


def _path(options: DatasetOptions) -> Path:
    if options.dataset_path is None:
        raise ConfigError(f"--dataset-name {options.dataset_name} needs --dataset-path FILE.")
    return Path(options.dataset_path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--dataset-path {str(path)!r}: {error.strerror or 'cannot be read'}.") from None


_Builder = Callable[[DatasetOptions, Callable[[], Vocabulary], np.random.Generator, bool], list[Sample]]
_BUILDERS: dict[str, _Builder] = {
    "random": _random,
    "sharegpt": _sharegpt,
    "custom": _custom,
    "prefix_repetition": _prefix_repetition,
}
