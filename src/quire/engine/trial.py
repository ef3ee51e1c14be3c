"""Trial: finds the request that makes steps fail. Owns who may run while that is not known.

    step of {a b c d} fails ─► {a b} alone ─ runs ─► {c d} alone ─ fails ─► {c} alone ─ fails ─► c is to blame
                                                                            {d} alone ─ runs

A step that failed for want of memory is tried once more with smaller chunks before anybody is suspected.
"""

from __future__ import annotations

from collections.abc import Sequence

from quire.engine.executors import Trouble
from quire.engine.scheduler.request import Request
from quire.engine.scheduler.scheduler import Scheduler, Step

SMALL_STEPS = 256
"""So many steps stay small after one that wanted too much memory."""


class Trial:
    """A limit (see `scheduler/limits.py`) that is there only while it has something to say.

    Args:
        scheduler: whose steps fail.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._active = False
        self._groups: list[list[Request]] = []  # who is to run alone, the next group last
        self._current: frozenset[int] = frozenset()
        self._retried = False
        self._most: int | None = None  # tokens of a small step
        self._small_steps = 0
        self._left = 0

    @property
    def active(self) -> bool:
        """Whether steps are bounded."""
        return self._active

    def failed(self, step: Step, trouble: Trouble) -> Request | None:
        """A step failed, and its requests stand as before it; returns the one to blame, if that is certain."""
        suspects = [share.request for share in step.shares if share.request.state == "running"]
        if self._groups and self._current >= {request.id for request in suspects}:
            self._groups.pop()
        if trouble == "memory" and self._scheduler.chunked_prefill:
            self._most = max(1, sum(step.plan.counts) // 2)
            self._small_steps = SMALL_STEPS
        if trouble == "memory" and not self._retried:
            self._retried = True
            self._watch(suspects)
            return None
        if len(step.shares) == 1:
            self._next()
            return suspects[0] if suspects else None
        if len(suspects) == 1:  # it was not alone: another one of the step has ended since
            self._watch(suspects)
            return None
        half = len(suspects) // 2
        self._watch(suspects[half:], suspects[:half])
        return None

    def passed(self, step: Step) -> None:
        """A step went well."""
        if self._groups and self._current >= {share.request.id for share in step.shares}:
            self._groups.pop()
            self._next()

    def end(self) -> None:
        """Let everybody run again."""
        self._groups.clear()
        self._next()

    # ---- as a limit ----------------------------------------------------------------------------------------------

    def begin(self, backlog: int) -> None:
        """Whoever has left the device in the meantime is not waited for."""
        while self._groups and not any(request.state == "running" for request in self._groups[-1]):
            self._groups.pop()
        self._small_steps -= 1
        self._next()
        self._left = self._most or 0

    def allow(self, request: Request, count: int) -> int:
        """All of the group's, none of others'; a bounded number of prompt tokens."""
        if self._groups and request.id not in self._current:
            return 0
        return count if self._most is None or count <= 1 else max(0, min(count, self._left))

    def take(self, request: Request, count: int) -> None:
        """Counts tokens."""
        self._left -= count

    def drop(self, request: Request) -> None:
        """`begin` sees it."""

    # ---- inside --------------------------------------------------------------------------------------------------

    def _watch(self, *groups: Sequence[Request]) -> None:
        self._groups += [list(group) for group in groups if group]
        self._next()

    def _next(self) -> None:
        """Turn to the group that is last now; stand aside when there is nothing to bound any more."""
        self._current = frozenset(request.id for request in self._groups[-1]) if self._groups else frozenset()
        if self._small_steps <= 0:
            self._most = None
        if not self._groups:
            self._retried = False
        active = bool(self._groups) or self._most is not None
        if active != self._active:
            self._active = active
            (self._scheduler.add_limit if active else self._scheduler.remove_limit)(self)
