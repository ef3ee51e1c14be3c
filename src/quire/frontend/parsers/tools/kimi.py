"""Kimi K2. Between <|tool_calls_section_begin|> and <|tool_calls_section_end|>, for each call:

    <|tool_call_begin|>functions.NAME:INDEX<|tool_call_argument_begin|>{…}<|tool_call_end|>

The text before the arguments is the call's id; Kimi's template wants it back as it was.
"""

from __future__ import annotations

from quire.frontend.parsers.calls import MAX_GAP, ToolParser
from quire.frontend.parsers.reader import SPACE, Markers, NotACall, Wait

SECTION, SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
CALL, ARGUMENTS, CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

_CALL = Markers([CALL])
_ARGUMENTS = Markers([ARGUMENTS])
_CALL_END = Markers([CALL_END])
_SECTION_END = Markers([SECTION_END])


class KimiK2Parser(ToolParser):
    """Tags around JSON arguments."""

    openers = (SECTION, CALL)
    closers = (CALL_END, SECTION_END)
    markers = (SECTION, SECTION_END, CALL, ARGUMENTS, CALL_END)

    @staticmethod
    def new_id(index: int, name: str) -> str:
        return f"functions.{name}:{index}"

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
        call_id = yield from self._text_before("<")
        if (yield from self._reader.literal(_ARGUMENTS)) is None:
            raise NotACall
        name = call_id.removeprefix("functions.")
        before, colon, index = name.rpartition(":")
        if colon and index.isdigit():
            name = before
        yield from self._arguments(name, call_id)
        yield from self._close(_CALL_END)
