"""Limits: what besides the token budget bounds a step. Each is an object in the scheduler's tuple, empty by default.

Adapter slots, an encoder budget or a cap on long prompts all fit `allow / take / drop`; the scheduler asks every
limit, takes the smallest answer, and knows nothing else about them.
"""

from __future__ import annotations

from typing import Protocol

from quire.engine.scheduler.request import Request


class Limit(Protocol):
    """One bound on who may run."""

    def begin(self) -> None:
        """A new step is being planned."""

    def allow(self, request: Request, count: int) -> int:
        """How many of `count` tokens the request may run in this step; 0 keeps it out."""

    def take(self, request: Request, count: int) -> None:
        """The request runs `count` tokens in this step."""

    def drop(self, request: Request) -> None:
        """The request gave up its row: it finished or was preempted."""


class LongPromptCap:
    """At most `threshold` tokens of one request in a step, so that a long prompt leaves room for others."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold

    def begin(self) -> None:
        """Nothing to reset."""

    def allow(self, request: Request, count: int) -> int:
        """The smaller of the two."""
        return min(count, self._threshold)

    def take(self, request: Request, count: int) -> None:
        """Nothing is used up."""

    def drop(self, request: Request) -> None:
        """Nothing is held."""
