"""The order of waiting requests: a policy is a sort key, the queue is a heap.

A preempted request keeps its key, so it returns to its old place in line under every policy.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from quire.engine.scheduler.request import Request

Key = tuple[int, int]
Policy = Callable[[Request], Key]


def fcfs(request: Request) -> Key:
    """First come, first served."""
    return (0, request.seq)


def by_priority(request: Request) -> Key:
    """Smallest priority number first; equal ones by arrival."""
    return (request.priority, request.seq)


POLICIES: dict[str, Policy] = {"fcfs": fcfs, "priority": by_priority}


_NOBODY = (None, 0)


class WaitingQueue:
    """Waiting requests, best first. Push costs O(log n), removal O(1): its place in the heap is swept later.

    Attributes:
        num_tokens: that the waiting requests had when they came.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[Key, int, Request]] = []
        self._members: dict[int, tuple[Request, int]] = {}
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Request]:
        return (request for request, _ in self._members.values())

    def push(self, request: Request) -> None:
        """Put a request in line."""
        self._members[request.id] = (request, request.known)
        self.num_tokens += request.known
        heapq.heappush(self._heap, (self._policy(request), request.id, request))

    def peek(self) -> Request | None:
        """The next in line, left there."""
        while self._heap:
            request = self._heap[0][2]
            if self._members.get(request.id, _NOBODY)[0] is request:
                return request
            heapq.heappop(self._heap)
        return None

    def remove(self, request: Request) -> None:
        """Take a request out of line, wherever it stands."""
        self.num_tokens -= self._members.pop(request.id)[1]
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._members):
            self._heap = [item for item in self._heap if item[1] in self._members]
            heapq.heapify(self._heap)
