"""Kimi K2 Thinking: <think>…</think>; a call may begin before the thoughts were closed."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class KimiReasoningParser(ThinkingParser):
    """Calls end the thoughts."""

    other_ends = ("<|tool_calls_section_begin|>",)
    markers = ("<think>", "</think>", "<|tool_calls_section_begin|>")
