"""Cohere Command A: <|START_THINKING|>…<|END_THINKING|><|START_RESPONSE|>…<|END_RESPONSE|>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class CohereReasoningParser(ThinkingParser):
    """Thoughts, also the plan that comes before calls."""

    openers = ("<|START_THINKING|>",)
    closers = ("<|END_THINKING|>",)
    answer_tags = ("<|START_RESPONSE|>", "<|END_RESPONSE|>")
    markers = ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")
