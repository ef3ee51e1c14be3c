"""The order of waiting requests: a policy is a sort key, the queue is a heap for each tenant.

A preempted request keeps its key, so it returns to its old place in line under every policy.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from quire.engine.scheduler.request import Request
from quire.engine.scheduler.tenants import Tenants

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
    """Waiting requests, best first: a heap per tenant, and the tenant whose turn it is.

    Push costs O(log n), removal O(1): its place in the heap is swept later. Peek costs O(tenants that wait).

    Attributes:
        num_tokens: that the waiting requests had when they came.
    """

    def __init__(self, policy: Policy, tenants: Tenants) -> None:
        self._policy = policy
        self._tenants = tenants
        self._heaps: dict[str, list[tuple[Key, int, Request]]] = {}
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
        heapq.heappush(self._heaps.setdefault(request.tenant, []), (self._policy(request), request.id, request))

    def peek(self) -> Request | None:
        """The next in line, left there."""
        if len(self._heaps) == 1:
            return self._first(*self._heaps)
        firsts = [first for tenant in list(self._heaps) if (first := self._first(tenant)) is not None]
        return min(firsts, key=self.turn, default=None)

    def turn(self, request: Request) -> tuple[int, tuple[int, int], int]:
        """Smaller is earlier: the policy's class, then whose turn it is, then arrival."""
        kind, seq = self._policy(request)
        return kind, self._tenants.rank(request.tenant), seq

    def remove(self, request: Request) -> None:
        """Take a request out of line, wherever it stands."""
        self.num_tokens -= self._members.pop(request.id)[1]
        heap = self._heaps[request.tenant]
        if len(heap) > 64 and len(heap) > 2 * len(self._members):
            self._heaps[request.tenant] = heap = [item for item in heap if item[1] in self._members]
            heapq.heapify(heap)

    def _first(self, tenant: str) -> Request | None:
        """The best of one tenant's; a heap in which nobody waits is dropped."""
        heap = self._heaps[tenant]
        while heap:
            request = heap[0][2]
            if self._members.get(request.id, _NOBODY)[0] is request:
                return request
            heapq.heappop(heap)
        del self._heaps[tenant]
        return None
