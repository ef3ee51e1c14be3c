"""Harmony, the format of gpt-oss: messages with a header each.

    <|channel|>analysis<|message|>thoughts<|end|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{"a": 1}<|call|>
    <|start|>assistant<|channel|>final<|message|>answer<|return|>

Analysis and calls of tools that are not functions are reasoning; commentary to nobody and final are content. The
recipient may also stand before the channel. The prompt ends with <|start|>assistant, so the output begins in a header.
"""

from __future__ import annotations

from typing import ClassVar

from quire.frontend.parsers.calls import MAX_NAME, ToolParser
from quire.frontend.parsers.reader import Markers, NotACall, Wait, Write

START, CHANNEL, MESSAGE, CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
END, CALL, RETURN = "<|end|>", "<|call|>", "<|return|>"
MARKERS = (START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN)

_FIRST = Markers([START, CHANNEL, " to="])
_BETWEEN = Markers([START, CHANNEL, END, CALL, RETURN])
_MESSAGE = Markers([MESSAGE])
_FUNCTIONS = "functions."


class HarmonyParser(ToolParser):
    """Reads the messages of one output.

    Attributes:
        reads_calls: False leaves calls of functions in the text, as content, for a parser behind this one.
    """

    openers = (START, CHANNEL)
    closers = (END, CALL, RETURN)
    markers = MARKERS
    reads_calls: ClassVar[bool] = True

    def _run(self) -> Wait[None]:
        reader = self._reader
        opener = yield from reader.literal(_FIRST)
        while True:
            if opener is None:
                opener = yield from reader.until(_BETWEEN, self._say)
            if opener is None:
                return
            if opener not in (END, CALL, RETURN):
                yield from self._attempt(opener)
            opener = None

    def _calls(self, opener: str) -> Wait[None]:
        """One message; the opener is the beginning of its header."""
        reader = self._reader
        header = [opener]
        yield from self._header(header)
        channel, recipient = _read_header("".join(header))
        if not recipient.startswith(_FUNCTIONS):
            reader.release()
            thought = channel == "analysis" or recipient
            yield from self._body(self._think if thought else self._say)
        elif self.reads_calls:
            yield from self._call_body(recipient.removeprefix(_FUNCTIONS))
        else:
            self._say(reader.held())
            reader.release()
            end = yield from reader.until(_BETWEEN, self._say)
            self._after_body(end)
            if end is not None and end not in (START, CHANNEL):
                self._say(end)

    def _header(self, header: list[str]) -> Wait[None]:
        """Collect the text up to <|message|>, which is consumed."""
        for _ in range(MAX_NAME):
            char = yield from self._reader.need()
            if char == "<" and (yield from self._reader.literal(_MESSAGE)) is not None:
                return
            header.append(char)
            self._reader.at += 1
        raise NotACall

    def _call_body(self, name: str) -> Wait[None]:
        char = yield from self._reader.solid()
        if char != "<":
            yield from self._arguments(name)
            yield from self._reader.solid()
            return
        end = yield from self._reader.literal(_BETWEEN)
        if end is None or not self._tools.knows(name):
            raise NotACall
        self._start_call(name)
        self._argue("{}")
        self._end_call()
        self._after_body(end)

    def _body(self, write: Write) -> Wait[None]:
        end = yield from self._reader.until(_BETWEEN, write)
        self._after_body(end)

    def _after_body(self, end: str | None) -> None:
        """A message may begin without the one before having ended."""
        if end is not None and end in (START, CHANNEL):
            self._reader.at -= len(end)


def _read_header(header: str) -> tuple[str, str]:
    """Channel and recipient; empty if not named."""
    before, _, behind = header.partition(CHANNEL)
    channel = behind.partition(CONSTRAIN)[0].split()
    words = [*before.split(), *channel]
    recipient = next((word[3:] for word in words if word.startswith("to=")), "")
    return (channel[0] if channel else ""), recipient.partition("<")[0]
