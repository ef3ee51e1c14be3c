"""Limits: what besides the token budget bounds a step. Each is an object in the scheduler's tuple, empty by default.

Adapter slots, an encoder budget or a cap on long prompts all fit `allow / take / drop`; the scheduler asks every
limit, takes the smallest answer, and knows nothing else about them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from typing import Protocol

from quire.engine.scheduler.request import Request
from quire.messages import EngineStats, StepPlan


class Rider(Protocol):
    """Something that steps carry besides tokens."""

    def board(self, plan: StepPlan) -> None:
        """The plan of a step is whole: add to it."""

    def undo(self, plan: StepPlan) -> None:
        """A step, the latest there is, brings no results; what it did on the device is unknown."""

    def counted(self, stats: EngineStats) -> EngineStats:
        """The counters with its own among them."""


class Limit(Protocol):
    """One bound on who may run."""

    def begin(self, backlog: int) -> None:
        """A new step is being planned; `backlog` prompt tokens could run if nothing but their number bounded it."""

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

    def begin(self, backlog: int) -> None:
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

    A step that only generates is bound by reading the weights: up to a number of tokens prompts ride along almost for
    free. More of them cost what they always cost, and everyone's next token waits for that. So a step takes what is
    free, and more the longer the backlog: as many that the backlog, at this pace, is gone in `patience`.

        time of a step ~ max(free, 2 * decodes + chunk)            a decode also reads its KV: it counts twice
        chunk = backlog * time / patience   =>   time = max(free, 2 * decodes) / (1 - backlog / patience)

    Where nobody generates a step takes `alone`: requests that come together then do not all generate, and end,
    together.

    Args:
        sizes: tokens of such steps, ascending, in numbers that matrix products like; the first are free.
        patience: tokens that prompts could run in the time in which they should have run.
        alone: tokens of a step in which nobody generates.
    """

    def __init__(self, sizes: tuple[int, ...], patience: int, alone: int) -> None:
        self._sizes = sizes
        self._patience = patience
        self._alone = alone
        self._backlog = 0
        self._num_decodes = 0
        self._num_tokens = 0

    def begin(self, backlog: int) -> None:
        """Nobody has a share yet."""
        self._backlog = backlog
        self._num_decodes = self._num_tokens = 0

    def allow(self, request: Request, count: int) -> int:
        """What is left of the step, for more than one token."""
        if count <= 1:
            return count
        size = self._size() if self._num_decodes else self._alone
        return max(0, min(count, size - self._num_tokens))

    def take(self, request: Request, count: int) -> None:
        """One token is a decode, or costs as little."""
        self._num_decodes += count == 1
        self._num_tokens += count

    def drop(self, request: Request) -> None:
        """Nothing is held."""

    def _size(self) -> int:
        slack = 1 - self._backlog / self._patience
        wanted = max(self._sizes[0], 2 * self._num_decodes) / slack - self._num_decodes if slack > 0 else math.inf
        size = self._sizes[min(bisect_left(self._sizes, wanted), len(self._sizes) - 1)]
        return max(size, self._num_decodes + self._sizes[0])  # never nothing
