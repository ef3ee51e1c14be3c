"""Seats: owns which matcher of which worker follows a request, and which line of the mask memory is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quire.engine.grammar.pool import Pool, Worker
from quire.engine.grammar.wire import Drop

if TYPE_CHECKING:
    from quire.engine.grammar.keeper import Constrained


class Seat:
    """A matcher in a worker, and its line of the mask memory.

    Attributes:
        owner: None once the request has ended or moved.
        num_jobs: sent and not answered.
    """

    __slots__ = ("line", "matcher", "num_jobs", "owner", "worker")

    def __init__(self, matcher: int, line: int, worker: Worker, owner: Constrained) -> None:
        self.matcher = matcher
        self.line = line
        self.worker = worker
        self.owner: Constrained | None = owner
        self.num_jobs = 1


class Seats:
    """A line is another's only when its worker has answered all that it was asked about it: until then it may write.

    Args:
        pool: of workers.
        num_lines: of the mask memory.
    """

    def __init__(self, pool: Pool, num_lines: int) -> None:
        self._pool = pool
        self._taken: dict[int, Seat] = {}
        self._free_lines = list(range(num_lines - 1, -1, -1))
        self._without: list[Constrained] = []
        self._next_matcher = 0

    def take(self, worker: Worker, owner: Constrained) -> Seat | None:
        """A seat for a matcher that is about to start; None while no line is free: `may_try_again` names the owner."""
        if not self._free_lines:
            self._without.append(owner)
            return None
        seat = Seat(self._next_matcher, self._free_lines.pop(), worker, owner)
        self._next_matcher += 1
        self._taken[seat.matcher] = seat
        return seat

    def leave(self, seat: Seat) -> None:
        """The owner needs it no more."""
        seat.owner = None
        if not seat.worker.dead:
            self._pool.send(seat.worker, Drop([seat.matcher]))
        if not seat.num_jobs or seat.worker.dead:
            self._free(seat)

    def answered(self, matchers: Sequence[int]) -> list[Seat]:
        """The seats that a job was about; those that were left are free once it was their last."""
        seats = [seat for matcher in matchers if (seat := self._taken.get(matcher)) is not None]
        for seat in seats:
            seat.num_jobs -= 1
            if seat.owner is None and not seat.num_jobs:
                self._free(seat)
        return seats

    def clear(self, worker: Worker) -> list[Seat]:
        """The seats of a worker that is gone; their lines are free."""
        seats = [seat for seat in self._taken.values() if seat.worker is worker]
        for seat in seats:
            self._free(seat)
        return seats

    def may_try_again(self) -> list[Constrained]:
        """As many of those that found no line as there are free ones now, the last to come first."""
        return [self._without.pop() for _ in range(min(len(self._without), len(self._free_lines)))]

    def _free(self, seat: Seat) -> None:
        if self._taken.pop(seat.matcher, None) is not None:
            self._free_lines.append(seat.line)
