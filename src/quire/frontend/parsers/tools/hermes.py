"""Hermes 2 Pro, Qwen 2.5 and Qwen 3, Granite 4: <tool_call>{"name": …, "arguments": {…}}</tool_call>, any number."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser
from quire.frontend.parsers.protocol import CallForm


class HermesParser(JsonToolParser):
    """JSON between tags."""

    openers = ("<tool_call>",)
    closers = ("</tool_call>",)
    markers = ("<tool_call>", "</tool_call>")
    form = CallForm("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n</tool_call>")


class LongcatParser(JsonToolParser):
    """LongCat-Flash: the same with its own tags."""

    openers = ("<longcat_tool_call>",)
    closers = ("</longcat_tool_call>",)
    markers = ("<longcat_tool_call>", "</longcat_tool_call>")
    form = CallForm("<longcat_tool_call>", '\n{"name": "', '", "arguments": ', "}\n</longcat_tool_call>")
