"""gpt-oss: analysis is reasoning, in the Harmony format; calls are left to the tool parser."""

from __future__ import annotations

from quire.frontend.parsers.harmony import CHANNEL, CONSTRAIN, MESSAGE, HarmonyParser
from quire.frontend.parsers.protocol import Thoughts


class HarmonyReasoningParser(HarmonyParser):
    """Reasoning and content apart.

    Args:
        prompt: not needed; messages say what they are.
    """

    reads_calls = False

    @property
    def thoughts(self) -> Thoughts:
        """All messages before the final one, headers included."""
        final = CHANNEL + "final"
        return Thoughts(True, (), (final + MESSAGE, f"{final} {CONSTRAIN}json{MESSAGE}"))

    def __init__(self, prompt: str | None = None) -> None:
        super().__init__()
