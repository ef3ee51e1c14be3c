"""DeepSeek V3, R1 and V3.1. Between <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>, for each call:

V3, R1  <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\n{…}\\n```<｜tool▁call▁end｜>
V3.1    <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜>
"""

# ruff: noqa: RUF001, RUF002 - the wide bars are DeepSeek's own
from __future__ import annotations

from quire.frontend.parsers.calls import MAX_GAP, ToolParser
from quire.frontend.parsers.reader import SPACE, Markers, NotACall, Wait

SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, SEPARATOR, CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

_CALL = Markers([CALL])
_SEPARATOR = Markers([SEPARATOR])
_FENCE = Markers(["```json", "```\n"])
_FENCE_END = Markers(["```"])
_CALL_END = Markers([CALL_END])
_SECTION_END = Markers([SECTION_END])


class DeepSeekV3Parser(ToolParser):
    """Both formats, told apart by the word `function` before the separator."""

    openers = (SECTION, CALL)
    closers = (CALL_END, SECTION_END)
    markers = (SECTION, SECTION_END, CALL, SEPARATOR, CALL_END)

    def _calls(self, opener: str) -> Wait[None]:
        reader = self._reader
        if opener == SECTION:
            yield from reader.run(SPACE, MAX_GAP)
            if (yield from reader.literal(_CALL)) is None:
                raise NotACall
        while True:
            yield from self._one_call()
            yield from reader.run(SPACE, MAX_GAP)
            if (yield from reader.literal(_CALL)) is None:
                break
            reader.hold(len(CALL))
        yield from reader.literal(_SECTION_END, unfinished=True)

    def _one_call(self) -> Wait[None]:
        reader = self._reader
        name = yield from self._text_before("<")
        if (yield from reader.literal(_SEPARATOR)) is None:
            raise NotACall
        if name == "function":
            name = yield from self._text_before("\n`{")
        yield from reader.run(SPACE, MAX_GAP)
        fenced = yield from reader.literal(_FENCE)
        yield from self._arguments(name)
        yield from reader.run(SPACE, MAX_GAP)
        if fenced:
            yield from reader.literal(_FENCE_END, unfinished=True)
        yield from self._close(_CALL_END)
