"""DeepSeek R1 and others that always think: what stands before </think> is reasoning, with or without <think>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class DeepSeekR1Parser(ThinkingParser):
    """Inside from the start, unless the prompt has closed the thoughts already."""

    inside_by_default = True
    markers = ("<think>", "</think>")
