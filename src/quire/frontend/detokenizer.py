"""Detokenizer: one output's tokens become text and, where a stop string appears, an end.

token ids ── decoding (exact, incremental) ── stops (holds back possible beginnings) ── text
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from quire.frontend.decoding import TextDecoder
from quire.frontend.stops import StopMatcher


class Pushed(msgspec.Struct, gc=False):
    """What some tokens brought.

    Attributes:
        text: new characters, all of them certain.
        num_tokens: how many of the pushed tokens count; fewer than were pushed only when `stop` is set.
        stop: the stop string that ended the output, or None.
    """

    text: str
    num_tokens: int
    stop: str | None = None


class Detokenizer:
    """Owns the decoding state of one output.

    Args:
        decoder: a fresh one of the tokenizer's lane.
        matcher: for the request's stop strings; None if there are none.
        min_tokens: stop strings count only when a later token than this completes them.
        include_stop: keep the text of a stop token that ends the output.
    """

    __slots__ = ("_decoder", "_include_stop", "_matcher", "_min_tokens", "_num_tokens")

    def __init__(
        self,
        decoder: TextDecoder,
        matcher: StopMatcher | None = None,
        *,
        min_tokens: int = 0,
        include_stop: bool = False,
    ) -> None:
        self._decoder = decoder
        self._matcher = matcher
        self._min_tokens = min_tokens
        self._include_stop = include_stop
        self._num_tokens = 0

    def push(self, token_ids: Sequence[int], *, stop_token: bool = False) -> Pushed:
        """Add tokens.

        Args:
            token_ids: the next tokens, in order.
            stop_token: whether the last of them ended the output as a stop token; its text is left out then,
                unless the request asked for it.
        """
        readable = token_ids[:-1] if stop_token and not self._include_stop else token_ids
        if self._matcher is None:
            return Pushed(self._decoder.push(readable), len(token_ids))
        texts: list[str] = []
        for count, token_id in enumerate(readable, 1):
            self._num_tokens += 1
            text, stop = self._matcher.feed(self._decoder.push((token_id,)), armed=self._num_tokens > self._min_tokens)
            texts.append(text)
            if stop is not None:
                return Pushed("".join(texts), count, stop)
        self._num_tokens += len(token_ids) - len(readable)
        return Pushed("".join(texts), len(token_ids))

    def finish(self) -> Pushed:
        """The rest of the text once no token will come; what was incomplete shows as U+FFFD.

        A stop string may still be found, where its last characters had to wait.
        """
        rest = self._decoder.finish()
        if self._matcher is None:
            return Pushed(rest, 0)
        text, stop = self._matcher.feed(rest, armed=self._num_tokens > self._min_tokens)
        return Pushed(text if stop is not None else text + self._matcher.finish(), 0, stop)


class NoDetokenizer:
    """Stands in when a request wants token ids only."""

    def push(self, token_ids: Sequence[int], *, stop_token: bool = False) -> Pushed:
        """Counts; there is no text."""
        return Pushed("", len(token_ids))

    def finish(self) -> Pushed:
        """Nothing is ever left."""
        return Pushed("", 0)


AnyDetokenizer = Detokenizer | NoDetokenizer
