"""Cohere Command R7B and A: <|START_ACTION|>[{"tool_name": …, "parameters": {…}, …}]<|END_ACTION|>."""

from __future__ import annotations

from quire.frontend.parsers.calls import JsonToolParser


class CohereParser(JsonToolParser):
    """A list of calls between tags."""

    openers = ("<|START_ACTION|>",)
    closers = ("<|END_ACTION|>",)
    markers = ("<|START_ACTION|>", "<|END_ACTION|>")
