"""Reader: the text of one output on its way in. Grammars are written on it as generators that read like the format.

A grammar takes characters and, where it needs one that has not come, `yield`s. It decides by characters only, never
by where a piece of text ended, so every way of cutting the text gives the same result.

    held (may turn out to be no call) | text[:at] consumed | text[at:] ahead

Nothing that was consumed is read again: a rejected text is given out as it is, and reading goes on behind it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

T = TypeVar("T")
Wait = Generator[None, None, T]
"""A grammar that ends with a T; each yield waits for more text, or for its end."""
Write = Callable[[str], object]
SPACE = " \t\r\n"


class NotACall(Exception):
    """The character ahead cannot follow in this format."""


class Truncated(NotACall):
    """The output ended where the format needs more."""


class Markers:
    """Texts to look for. None may contain another, so the first one that is complete is the right one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = tuple(dict.fromkeys(texts))
        nested = [(one, other) for one in self.texts for other in self.texts if one != other and one in other]
        if nested or "" in self.texts:
            raise ValueError(f"A marker contains another: {nested}.")
        self.longest = max(map(len, self.texts), default=0)
        # With no texts at all, a pattern that matches nothing.
        self._any = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._firsts = re.compile("|".join(re.escape(char) for char in sorted({t[0] for t in self.texts})) or r"(?!)")
        self._beginnings = frozenset(text[:size] for text in self.texts for size in range(1, len(text)))

    def search(self, text: str, at: int) -> re.Match[str] | None:
        """The first marker from here on."""
        return self._any.search(text, at)

    def match(self, text: str, at: int) -> str | None:
        """The marker that stands here."""
        found = self._any.match(text, at)
        return found.group() if found else None

    def may_become(self, text: str) -> bool:
        """Whether a marker begins with this text and is longer."""
        return text in self._beginnings

    def num_open(self, text: str, at: int) -> int:
        """How many characters at the end of text[at:] may be the beginning of a marker."""
        start = max(at, len(text) - self.longest + 1)
        while found := self._firsts.search(text, start):
            if text[found.start() :] in self._beginnings:
                return len(text) - found.start()
            start = found.start() + 1
        return 0


@functools.lru_cache(512)
def markers_of(texts: tuple[str, ...]) -> Markers:
    """The same object for the same texts: parsers are made anew for every output."""
    return Markers(texts)


class Reader:
    """Owns the characters of one output between their arrival and their use."""

    def __init__(self, text: str = "", *, ended: bool = False) -> None:
        self.text = text
        self.at = 0
        self.ended = ended
        self._held: list[str] | None = None
        self._held_from = 0
        self._num_held = 0

    def push(self, text: str) -> None:
        """More text has come."""
        if self._held is not None:
            self._held.append(self.text[self._held_from : self.at])
            self._num_held += self.at - self._held_from
            self._held_from = 0
        self.text = self.text[self.at :] + text
        self.at = 0

    # ---- holding -------------------------------------------------------------------------------------------------

    @property
    def holding(self) -> bool:
        """Whether consumed text is kept."""
        return self._held is not None

    @property
    def num_held(self) -> int:
        """Characters kept."""
        return 0 if self._held is None else self._num_held + self.at - self._held_from

    def hold(self, back: int = 0) -> None:
        """Keep what is consumed from now on, and the last `back` characters before, which are still in `text`."""
        self._held, self._held_from, self._num_held = [], self.at - back, 0

    def held(self) -> str:
        """The consumed text since `hold`."""
        return "".join([*(self._held or ()), self.text[self._held_from : self.at]])

    def release(self) -> None:
        """Forget what was kept: it has been understood, or given out."""
        self._held = None

    # ---- reading -------------------------------------------------------------------------------------------------

    def more(self) -> Wait[bool]:
        """Wait for a character ahead; False if the output ends instead."""
        while self.at >= len(self.text):
            if self.ended:
                return False
            yield
        return True

    def need(self) -> Wait[str]:
        """The character ahead, not consumed.

        Raises:
            Truncated: the output ends here.
        """
        if self.at >= len(self.text) and not (yield from self.more()):
            raise Truncated
        return self.text[self.at]

    def ahead(self, count: int) -> Wait[str]:
        """The next `count` characters, not consumed; fewer only where the output ends."""
        while len(self.text) - self.at < count and not self.ended:
            yield
        return self.text[self.at : self.at + count]

    def solid(self) -> Wait[str]:
        """Skip white space; the character ahead, or "" where the output ends."""
        while True:
            text, at = self.text, self.at
            while at < len(text) and text[at] in SPACE:
                at += 1
            self.at = at
            if at < len(text):
                return text[at]
            if not (yield from self.more()):
                return ""

    def expect(self, char: str) -> Wait[None]:
        """Skip white space and consume this character.

        Raises:
            NotACall: another one stands there.
        """
        found = yield from self.solid()
        if found != char:
            raise NotACall if found else Truncated
        self.at += 1

    def run(self, chars: str, most: int) -> Wait[str]:
        """Consume up to `most` characters as long as they are among `chars`."""
        run = yield from self.run_ahead(chars, most)
        self.at += len(run)
        return run

    def run_ahead(self, chars: str, most: int) -> Wait[str]:
        """The same without consuming them. Waits until it is clear where the run ends."""
        count = 0
        while count < most:
            text, end = self.text, self.at + count
            while end < len(text) and count < most and text[end] in chars:
                end += 1
                count += 1
            if end < len(text) or self.ended:
                break
            if count < most:
                yield
        return self.text[self.at : self.at + count]

    def literal(self, markers: Markers, *, unfinished: bool = False) -> Wait[str | None]:
        """Consume the marker that stands here; None if none does.

        Args:
            markers: what is looked for.
            unfinished: a beginning of a marker will do where the output ends.
        """
        while True:
            found = markers.match(self.text, self.at)
            if found is not None:
                self.at += len(found)
                return found
            ahead = self.text[self.at : self.at + markers.longest]
            if not markers.texts or (ahead and not markers.may_become(ahead)):
                return None
            if self.ended:
                if not (unfinished and ahead):
                    return None
                self.at += len(ahead)
                return ahead
            yield

    def until(self, markers: Markers, write: Write) -> Wait[str | None]:
        """Give out text up to a marker and consume the marker; None if the output ends without one.

        Text is written as soon as it is certain that it begins no marker.
        """
        while True:
            found = markers.search(self.text, self.at)
            if found is not None:
                write(self.text[self.at : found.start()])
                self.at = found.end()
                return found.group()
            end = len(self.text) - (0 if self.ended else markers.num_open(self.text, self.at))
            if end > self.at:
                write(self.text[self.at : end])
                self.at = end
            if self.ended:
                return None
            yield

    def rest(self) -> str:
        """Consume what is ahead."""
        rest, self.at = self.text[self.at :], len(self.text)
        return rest


def run_whole(grammar: Callable[[Reader, Write], Wait[None]], text: str) -> str | None:
    """What a grammar writes for a whole text, white space around it allowed; None if the text does not fit it."""
    reader = Reader(text.strip(SPACE), ended=True)
    written: list[str] = []
    try:
        for _ in grammar(reader, written.append):
            raise AssertionError("a grammar waits behind the end")
    except NotACall:
        return None
    return "".join(written) if reader.at == len(reader.text) else None
