"""Magistral: [THINK]…[/THINK], before that <think>…</think>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class MistralReasoningParser(ThinkingParser):
    """Both spellings."""

    openers = ("[THINK]", "<think>")
    closers = ("[/THINK]", "</think>")
    markers = ("[THINK]", "[/THINK]")
