"""Seed-OSS: <seed:think>…</seed:think>."""

from __future__ import annotations

from quire.frontend.parsers.thinking import ThinkingParser


class SeedReasoningParser(ThinkingParser):
    """Tags of its own."""

    openers = ("<seed:think>",)
    closers = ("</seed:think>",)
    markers = ("<seed:think>", "</seed:think>")
