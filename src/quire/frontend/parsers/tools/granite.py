"""Granite: <|tool_call|>[{"name": …, "arguments": {…}}, …], in 3.1 also <tool_call>[…]; the list ends the output."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser


class GraniteParser(JsonToolParser):
    """Granite 3.x."""

    openers = ("<|tool_call|>", "<tool_call>")
    closers = ("</tool_call>",)
    markers = ("<|tool_call|>", "<tool_call>", "</tool_call>")


class Granite20bParser(JsonToolParser):
    """granite-20b-functioncalling: <function_call> {…} for each call."""

    openers = ("<function_call>",)
    closers = ("</function_call>",)
    markers = ("<function_call>",)
