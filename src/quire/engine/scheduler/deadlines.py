"""By when waiting requests must have begun. Owns the times; nothing is spent on a request that nobody waits for."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from quire.engine.scheduler.request import Request


class Deadlines:
    """A heap of times. It knows requests by id only, so that it keeps none alive.

    Args:
        requests: all that the scheduler knows, by id.
    """

    def __init__(self, requests: Mapping[int, Request]) -> None:
        self._requests = requests
        self._heap: list[tuple[float, int]] = []

    def add(self, request: Request) -> None:
        """Watch a request, if it has such a time."""
        if request.start_by:
            heapq.heappush(self._heap, (request.start_by, request.id))
            if len(self._heap) > 1024 and len(self._heap) > 4 * len(self._requests):
                self._heap = [entry for entry in self._heap if self._waits(entry[1])]
                heapq.heapify(self._heap)

    def due(self, now: float) -> list[Request]:
        """Those whose time has come and who have not begun; each is named once. O(1) while there are none."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            _, id_ = heapq.heappop(self._heap)
            if self._waits(id_):
                found.append(self._requests[id_])
        return found

    def _waits(self, id_: int) -> bool:
        request = self._requests.get(id_)
        return request is not None and request.started is None
