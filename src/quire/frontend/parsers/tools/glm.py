"""GLM 4.5 to 4.7: <tool_call>NAME\\n<arg_key>KEY</arg_key>\\n<arg_value>value</arg_value>…</tool_call>."""

from __future__ import annotations

import json

from quire.frontend.parsers.calls import MAX_GAP, ToolParser
from quire.frontend.parsers.reader import SPACE, Markers, NotACall, Truncated, Wait
from quire.frontend.parsers.tagged import read_value, types_of

_INSIDE = Markers(["<arg_key>", "</tool_call>"])
_KEY_END = Markers(["</arg_key>"])
_VALUE = Markers(["<arg_value>"])
_VALUE_END = Markers(["</arg_value>"])


class GlmParser(ToolParser):
    """Keys and values in tags of their own."""

    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    markers = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

    def _calls(self, opener: str) -> Wait[None]:
        name = yield from self._text_before("<")
        if not self._tools.knows(name):
            raise NotACall
        schema, first = self._tools.parameters(name), True
        while (yield from self._tag(_INSIDE)) == "<arg_key>":
            if not first:
                self._reader.hold(len("<arg_key>"))
            key = yield from self._text_before("<")
            yield from self._tag(_KEY_END)
            yield from self._tag(_VALUE)
            if first:
                self._start_call(name)
            self._reader.release()
            self._argue(("{" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            yield from read_value(self._reader, self._argue, _VALUE_END, types_of(schema, key), trim=False)
            first = False
        if first:
            self._start_call(name)
        self._argue("{}" if first else "}")
        self._end_call()

    def _tag(self, tags: Markers) -> Wait[str]:
        yield from self._reader.run(SPACE, MAX_GAP)
        tag = yield from self._reader.literal(tags)
        if tag is None:
            raise NotACall if (yield from self._reader.more()) else Truncated
        return tag
