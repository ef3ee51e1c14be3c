"""What some requests may say next, as token masks. The engine asks once per step, between forward and sample."""

from __future__ import annotations

from typing import Protocol

from quire.engine.scheduler.scheduler import Step

Masks = dict[int, bytes]
"""Index into `StepPlan.samples` → bitmask of allowed tokens: bit t % 8 of byte t // 8 is token t."""


class Grammar(Protocol):
    """Keeps the state of every constrained request."""

    def masks(self, step: Step) -> Masks:
        """Masks for the samples of this step; every earlier token of those requests is committed by now."""


class NoGrammar:
    """Nobody is constrained."""

    def masks(self, step: Step) -> Masks:
        """None."""
        return {}
