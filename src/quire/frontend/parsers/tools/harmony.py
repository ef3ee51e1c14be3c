"""gpt-oss: calls are messages to functions.NAME in the Harmony format."""

from __future__ import annotations

from quire.frontend.parsers.harmony import HarmonyParser


class HarmonyToolParser(HarmonyParser):
    """Calls, and what a reasoning parser before it left."""

    reads_calls = True
