"""Matchers: the state of requests under their grammars, inside a worker process. The one file that knows llguidance.

    Grammar ── compile ──► prototype ── start: a copy ──► matcher ── advance: one token ──► mask in the request's line

The library is not trusted with the engine: a grammar that takes too long, too much memory or crashes ends this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import llguidance
import numpy as np

from quire.engine.grammar.wire import Advance, Start, line_bytes
from quire.messages import Grammar, unpack_ids

MAX_GAP = 4
"""Tokens of white space that may stand before the first token of a grammar."""
MAX_MESSAGE = 400
TOGETHER = 4
"""So many masks and more are shared among threads."""

LIMITS = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 100_000,
    "max_grammar_size": 500_000,
    "verbose_errors": False,
}
"""The library's own bounds on the work of one step: about 14 ms of lexing and 3 ms of parsing."""


def load_vocabulary(tokenizer: str, vocab_size: int, end_token_ids: list[int]) -> llguidance.LLTokenizer:
    """The library's view of a vocabulary.

    Raises:
        ValueError: it cannot read this tokenizer.json.
    """
    try:
        return llguidance.LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=end_token_ids or None)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


class GrammarError(Exception):
    """A sentence for whoever wrote the grammar."""


class _State:
    """One request's matcher.

    Attributes:
        left: tokens to generate before an end token is allowed.
        gap: tokens of white space that may still stand before the grammar.
    """

    def __init__(self, matcher: llguidance.LLMatcher, start: Start) -> None:
        self.matcher = matcher
        self.line = start.line
        self.left = start.min_tokens - start.num_before
        self.endless = start.endless
        self.gap = MAX_GAP if start.gap else 0

    @property
    def plain(self) -> bool:
        """Whether the mask is the grammar's and nothing else."""
        return self.left <= 0 and not self.endless and not self.gap


class Matchers:
    """Owns the grammars and matchers of one worker.

    Args:
        vocabulary: from `load_vocabulary`.
        lines: the mask memory, [lines, line_bytes] uint8.
        threads: that compute masks side by side.
    """

    def __init__(self, vocabulary: llguidance.LLTokenizer, lines: np.ndarray, threads: int = 1) -> None:
        self._vocabulary = vocabulary
        self._lines = lines
        self._bytes = line_bytes(vocabulary.vocab_size)
        self._limits = llguidance.LLParserLimits(**LIMITS)  # type: ignore[arg-type]
        self._executor = llguidance.LLExecutor(threads) if threads > 1 else None
        self._prototypes: dict[int, llguidance.LLMatcher] = {}
        self._states: dict[int, _State] = {}
        self._ends = np.zeros(self._bytes, dtype=np.uint8)
        for token in vocabulary.eos_tokens:
            self._ends[token // 8] |= 1 << token % 8
        self._space: np.ndarray | None = None

    def compile(self, key: int, grammar: Grammar) -> None:
        """Make a grammar and its first mask, so that no request waits for what is made only once.

        Raises:
            GrammarError: it is none, or asks for more than the library can hold an answer to.
        """
        try:
            source = translate(grammar)
        except ValueError as error:
            raise GrammarError(_short(str(error))) from None
        matcher = llguidance.LLMatcher(self._vocabulary, source, log_level=0, limits=self._limits)
        if not matcher.is_error():
            bits = np.frombuffer(matcher.deep_copy().compute_bitmask(), dtype=np.uint8)
            if not matcher.is_error() and not bits.any():
                raise GrammarError("it allows no output at all")
        if matcher.is_error():
            raise GrammarError(_short(matcher.get_error()))
        self._prototypes[key] = matcher

    def forget(self, key: int) -> None:
        """Drop a grammar; its requests have ended."""
        self._prototypes.pop(key, None)

    def start(self, start: Start) -> str | None:
        """Begin a request's state, and make its first mask; returns what went wrong."""
        self._states[start.matcher] = state = _State(self._prototypes[start.key].deep_copy(), start)
        for token in unpack_ids(start.tokens):
            if error := self._consume(state, token):
                return error
        return self._mask(state)

    def advance(self, message: Advance) -> dict[int, str]:
        """One more token of each; makes the next masks, and returns what went wrong by matcher."""
        states = [(number, self._states[number]) for number in message.matchers]
        errors = {}
        for (number, state), token in zip(states, message.tokens, strict=True):
            if error := self._consume(state, token):
                errors[number] = error
        together = [(number, state) for number, state in states if number not in errors and state.plain]
        if self._executor is None or len(together) < TOGETHER:
            together = []
        else:
            self._executor.unsafe_compute_mask_ptr(
                [(state.matcher, state.line) for _, state in together],
                self._lines.ctypes.data,
                self._bytes,
                len(self._lines),
            )
        done = {number for number, _ in together}
        for number, state in states:
            if number not in errors and (error := self._checked(state) if number in done else self._mask(state)):
                errors[number] = error
        return errors

    def drop(self, matchers: Iterable[int]) -> None:
        """These requests have ended."""
        for number in matchers:
            self._states.pop(number, None)

    def _consume(self, state: _State, token: int) -> str | None:
        state.left -= 1
        if state.gap:
            state.gap -= 1
            if self._is_space(token) and not state.matcher.validate_tokens([token]):
                return None
            state.gap = 0
        if not state.matcher.consume_token(token):
            return _short(state.matcher.get_error()) or f"token {token} does not follow"
        return None

    def _mask(self, state: _State) -> str | None:
        state.matcher.unsafe_compute_mask_ptr(self._lines[state.line].ctypes.data, self._bytes)
        if state.plain:
            return self._checked(state)
        line = self._lines[state.line]
        if state.gap:
            line |= self._spaces()
        if state.left > 0 or state.endless:
            others = line & ~self._ends
            if others.any():
                line[:] = others
        return self._checked(state)

    def _checked(self, state: _State) -> str | None:
        """What keeps the mask from being used."""
        if state.matcher.is_error():
            return _short(state.matcher.get_error())
        return None if self._lines[state.line].any() else "nothing can follow"

    # ---- white space before the grammar --------------------------------------------------------------------------

    def _is_space(self, token: int) -> bool:
        return bool(self._spaces()[token // 8] >> token % 8 & 1)

    def _spaces(self) -> np.ndarray:
        """A mask of the tokens that are white space only; made when first needed."""
        if self._space is None:
            self._space = np.zeros(self._bytes, dtype=np.uint8)
            for token in range(self._vocabulary.vocab_size):
                data = self._vocabulary.decode_bytes([token])
                if data and not data.strip(b" \t\r\n"):
                    self._space[token // 8] |= 1 << token % 8
        return self._space


# ---------------------------------------------------------------------------------------------------------------
# what a request says → what the library takes


def translate(grammar: Grammar) -> str:
    """The library's form of a grammar.

    Raises:
        ValueError: it cannot be put into that form.
    """
    return _TRANSLATORS[grammar.kind](grammar)


def _json_schema(grammar: Grammar) -> str:
    options: dict[str, Any] = {"lenient": grammar.lenient, "coerce_one_of": grammar.lenient}
    if grammar.whitespace is None:
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = grammar.whitespace
    text: str = llguidance.LLMatcher.grammar_from_json_schema(grammar.text, overrides=options)  # type: ignore[arg-type]
    return text


def _regex(grammar: Grammar) -> str:
    text: str = llguidance.LLMatcher.grammar_from_regex(grammar.text)
    return text


def _choice(grammar: Grammar) -> str:
    options = (json.dumps(option, ensure_ascii=False) for option in json.loads(grammar.text))
    return str(llguidance.LLMatcher.grammar_from_lark("start: " + " | ".join(options)))


def _cfg(grammar: Grammar) -> str:
    return llguidance.grammar_from("grammar", grammar.text)


def _lark(grammar: Grammar) -> str:
    return grammar.text


_TRANSLATORS = {"json": _json_schema, "regex": _regex, "choice": _choice, "grammar": _cfg, "tags": _lark}


def _short(message: str) -> str:
    """One line, not too long: it goes to the client."""
    text = " ".join(message.split())
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "..."
