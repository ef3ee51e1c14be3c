"""Phi-4-mini: functools[{"name": …, "arguments": {…}}, …], or the list between <|tool_call|> and <|/tool_call|>."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser
from quire.frontend.parsers.reader import Wait


class Phi4MiniParser(JsonToolParser):
    """A list of calls."""

    openers = ("functools[", "<|tool_call|>")
    closers = ("<|/tool_call|>",)
    markers = ("<|tool_call|>", "<|/tool_call|>")

    def _calls(self, opener: str) -> Wait[None]:
        if opener == "functools[":
            self._reader.at -= 1
        yield from super()._calls(opener)
