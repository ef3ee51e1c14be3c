"""Gemma 4: <|channel>thought … <channel|>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class Gemma4ReasoningParser(ThinkingParser):
    """Tags of its own; the prompt may hold an empty pair."""

    openers = ("<|channel>thought",)
    closers = ("<channel|>",)
    markers = ("<|channel>", "<channel|>")
