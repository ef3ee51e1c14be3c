"""Qwen3 and others that may think: <think>…</think>, written by the model or begun at the end of the prompt."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class Qwen3ReasoningParser(ThinkingParser):
    """Inside where a tag says so."""

    markers = ("<think>", "</think>")
