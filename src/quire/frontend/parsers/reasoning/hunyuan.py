"""Hunyuan A13B: <think>…</think><answer>…</answer>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class HunyuanReasoningParser(ThinkingParser):
    """The answer stands between tags as well."""

    answer_tags = ("<answer>", "</answer>")
    markers = ("<think>", "</think>", "<answer>", "</answer>")
