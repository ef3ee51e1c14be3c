"""Families that write one JSON list of calls between tags: Hunyuan, Jamba, Nemotron."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser


class HunyuanParser(JsonToolParser):
    """Hunyuan A13B: <tool_calls>[…]</tool_calls>."""

    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)
    markers = ("<tool_calls>", "</tool_calls>")


class JambaParser(JsonToolParser):
    """Jamba: <tool_calls>[…]</tool_calls>."""

    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)
    markers = ("<tool_calls>", "</tool_calls>")


class NemotronParser(JsonToolParser):
    """Nemotron Nano and Super: <TOOLCALL>[…]</TOOLCALL>."""

    openers = ("<TOOLCALL>",)
    closers = ("</TOOLCALL>",)
    markers = ("<TOOLCALL>", "</TOOLCALL>")
