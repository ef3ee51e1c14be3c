"""gpt-oss: analysis is reasoning, in the Harmony format; calls are left to the tool parser."""

from __future__ import annotations

from quire.frontend.parsers.harmony import HarmonyParser


class HarmonyReasoningParser(HarmonyParser):
    """Reasoning and content apart.

    Args:
        prompt: not needed; messages say what they are.
    """

    reads_calls = False

    def __init__(self, prompt: str | None = None) -> None:
        super().__init__()
