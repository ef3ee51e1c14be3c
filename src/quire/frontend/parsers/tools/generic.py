"""Models of no known family: a JSON call, or a list of them, at the start of a line, bare or in a ```json block."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser


class GenericJsonParser(JsonToolParser):
    """Every common way of writing JSON calls; xLAM's among them. Functions must be known."""

    openers = ("<tool_call>", "<tool_calls>", "```json\n")
    closers = ("</tool_call>", "</tool_calls>", "```")
    line_openers = "{["
    strict_keys = True
    markers = ("<tool_call>", "</tool_call>", "<tool_calls>", "</tool_calls>")
