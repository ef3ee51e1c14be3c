"""What some answers may look like: which tokens may come next, as masks.

    keeper     who is constrained, how far each request is, who must wait
    pool       the worker processes, their deadlines, the memory in which masks lie
    child      the processes themselves        matching   the library inside them
    wire       what crosses

The library runs in processes of its own: whatever a grammar does to it, the engine is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from quire.engine.scheduler.request import Request
from quire.engine.scheduler.scheduler import Step
from quire.messages import Constraint

Masks = dict[int, bytes]
"""Index into `StepPlan.samples` → bitmask of allowed tokens: bit t % 8 of byte t // 8 is token t."""


class Constraints(Protocol):
    """Keeps the state of every constrained request."""

    def admit(self, request: Request, constraint: Constraint) -> None:
        """A held request that is constrained has come; its hold ends when its grammar is ready."""

    def poll(self) -> None:
        """Before a step is planned: take in what is ready, without waiting."""

    def mark(self, step: Step) -> None:
        """A step was planned: note in it which samples must wait for a mask."""

    def follow(self) -> None:
        """Tokens were committed: bring every constrained request up to them."""

    def masks(self, step: Step) -> Masks:
        """Masks for the samples of this step. Requests whose masks are not there in time are put on hold."""

    def rest(self) -> None:
        """No request can run until a mask is there: wait for one, but only a moment."""

    def filenos(self) -> Sequence[int]:
        """What becomes readable when something is ready."""

    def patience(self) -> float:
        """Seconds after which `poll` is needed even if nothing becomes readable; infinite if never."""

    def prepare(self) -> bool:
        """There is nothing to do: get ready for the first constrained request. Whether that began now."""

    def close(self) -> None:
        """End what was started."""


class NoConstraints:
    """Every answer is free."""

    def admit(self, request: Request, constraint: Constraint) -> None:
        """Never called where nothing takes constraints."""
        raise ValueError("this engine takes no constraints")

    def poll(self) -> None:
        """Nothing."""

    def mark(self, step: Step) -> None:
        """Nothing."""

    def follow(self) -> None:
        """Nothing."""

    def masks(self, step: Step) -> Masks:
        """None."""
        return {}

    def rest(self) -> None:
        """Nothing to wait for."""

    def filenos(self) -> Sequence[int]:
        """None."""
        return ()

    def patience(self) -> float:
        """Never."""
        return float("inf")

    def prepare(self) -> bool:
        """Nothing."""
        return False

    def close(self) -> None:
        """Nothing."""
