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


class MixedStep:
    """Bounds steps in which some requests generate and others read their prompts, so that prompts are spread.

    A step that is bound by arithmetic carries generated tokens almost for free: they share its reading of the weights.
    So eight steps with a prompt each are done sooner than one with eight prompts and seven without, and nobody's next
    token waits for long. Where nobody generates the whole budget is used.

    Args:
        least: tokens of such a step, at least; larger ones are multiples of it, a size that matrix products like.
        per_decode: tokens for each request that generates in the step.
    """

    def __init__(self, least: int, per_decode: int = 8) -> None:
        self._least = least
        self._per_decode = per_decode
        self._num_decodes = 0
        self._num_tokens = 0

    def begin(self) -> None:
        """Nobody has a share yet."""
        self._num_decodes = self._num_tokens = 0

    def allow(self, request: Request, count: int) -> int:
        """What is left of the step, for more than one token."""
        if count <= 1 or not self._num_decodes:
            return count
        size = -(-max(1, self._per_decode * self._num_decodes) // self._least) * self._least
        return max(0, min(count, size - self._num_tokens))

    def take(self, request: Request, count: int) -> None:
        """One token is a decode, or costs as little."""
        self._num_decodes += count == 1
        self._num_tokens += count

    def drop(self, request: Request) -> None:
        """Nothing is held."""
