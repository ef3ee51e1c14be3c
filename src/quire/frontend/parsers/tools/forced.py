"""Answers that a schema forces to be calls (`choice.plan_tools`): only arguments, or only a list of calls."""

from __future__ import annotations

from collections.abc import Callable

from quire.frontend.parsers.calls import JsonToolParser, ToolParser
from quire.frontend.parsers.protocol import ANY_TOOLS, ToolSet
from quire.frontend.parsers.reader import Wait, markers_of


class RequiredParser(JsonToolParser):
    """tool_choice "required": [{"name": …, "parameters": {…}}, …]."""

    line_openers = "[{"


class NamedParser(ToolParser):
    """tool_choice with a name: the first JSON object is the arguments of that function.

    Args:
        name: the function.
        tools: not looked at; the name has been checked.
        make_id: as in `ToolParser`.
    """

    line_openers = "{"

    def __init__(
        self, name: str, tools: ToolSet = ANY_TOOLS, *, make_id: Callable[[int, str], str] | None = None
    ) -> None:
        super().__init__(ANY_TOOLS, make_id=make_id)
        self._name = name

    def _calls(self, opener: str) -> Wait[None]:
        self._reader.at -= 1
        yield from self._arguments(self._name)
        yield from self._reader.solid()
        yield from self._reader.until(markers_of(()), self._say)
