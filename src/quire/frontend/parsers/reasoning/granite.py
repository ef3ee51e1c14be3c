"""Granite 3.2: "Here is my thought process:" … "Here is my response:"; 3.3: <think>…</think><response>…</response>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class GraniteReasoningParser(ThinkingParser):
    """Both formats; quantised models also write "Here's"."""

    openers = ("<think>", "Here is my thought process:", "Here's my thought process:")
    closers = ("</think>", "Here is my response:", "Here's my response:")
    answer_tags = ("<response>", "</response>")
    markers = ("<think>", "</think>", "<response>", "</response>")
