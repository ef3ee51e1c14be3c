"""Machine: runs a grammar over text that arrives in pieces, and collects its events."""

from __future__ import annotations

from typing import ClassVar

from quire.frontend.parsers.protocol import Content, Event, Reasoning, Thoughts, ToolCallArguments
from quire.frontend.parsers.reader import NotACall, Reader, Wait

HELD_LIMIT = 1 << 20
"""Characters that may wait for the decision whether they are a call; more are given out as content."""
_BLOCK = 4096
"""The limit is looked at where this many characters have come, so that the way of cutting does not matter."""


class Machine:
    """Owns the state of one output's parsing. Subclasses write the grammar.

    The grammar ends only when the output has ended.
    """

    markers: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self._reader = Reader()
        self._events: list[Event] = []
        self._kind: type[Content] | type[Reasoning] | None = None
        self._call = 0
        self._pieces: list[str] = []
        self._num_fed = 0
        self._grammar = self._run()

    @property
    def thoughts(self) -> Thoughts:
        """Where the thoughts of this output are; none."""
        return Thoughts()

    def feed(self, text: str) -> list[Event]:
        """What these characters make certain."""
        start = 0
        while start < len(text):
            piece = text[start : start + _BLOCK - self._num_fed % _BLOCK]
            start += len(piece)
            self._num_fed += len(piece)
            self._reader.push(piece)
            self._resume()
            if self._num_fed % _BLOCK == 0 and self._reader.num_held > HELD_LIMIT:
                self._resume(NotACall())
        return self._taken()

    def finish(self) -> list[Event]:
        """The rest; no more text will come."""
        self._reader.ended = True
        self._resume()
        return self._taken()

    def _run(self) -> Wait[None]:
        raise NotImplementedError

    def _resume(self, stop: NotACall | None = None) -> None:
        try:
            if stop is None:
                next(self._grammar)
            else:
                self._grammar.throw(stop)
        except StopIteration:
            pass

    # ---- what comes out ------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        """Content."""
        if text:
            if self._kind is not Content:
                self._close_piece()
                self._kind = Content
            self._pieces.append(text)

    def _think(self, text: str) -> None:
        """Reasoning."""
        if text:
            if self._kind is not Reasoning:
                self._close_piece()
                self._kind = Reasoning
            self._pieces.append(text)

    def _argue(self, text: str) -> None:
        """Arguments of the call that is open."""
        if text:
            if self._kind is not None:
                self._close_piece()
            self._pieces.append(text)

    def _emit(self, event: Event) -> None:
        self._close_piece()
        self._events.append(event)

    def _close_piece(self) -> None:
        if self._pieces:
            text = "".join(self._pieces)
            self._pieces.clear()
            self._events.append(ToolCallArguments(self._call, text) if self._kind is None else self._kind(text))
        self._kind = None

    def _taken(self) -> list[Event]:
        self._close_piece()
        events, self._events = self._events, []
        return events
