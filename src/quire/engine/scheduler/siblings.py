"""Siblings: owns who waits for whom among requests with the same prompt.

    first of a group    computes the prompt ──► its full blocks are remembered ──► the others are let in
    others              held ........................................................ hit those blocks

So n candidates of one prompt cost one prompt, and for each of the others what is left over of its last block. If the
first ends before it is there, the next one takes its part.
"""

from __future__ import annotations

from quire.engine.scheduler.request import Request


class Siblings:
    """Groups whose prompt is not computed yet.

    Args:
        block_size: tokens per KV block; only full ones can be shared.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._first: dict[int, Request] = {}
        self._held: dict[int, list[Request]] = {}

    def holds(self, request: Request) -> bool:
        """A request would go in line: whether it must wait for one of its group."""
        if request.group < 0:
            return False
        first = self._first.get(request.group)
        if first is None and self._needed(request):
            self._first[request.group] = request
        if first is None or first is request:
            return False
        held = self._held.setdefault(request.group, [])
        if request not in held:
            held.append(request)
        return True

    def advanced(self, request: Request, num_tokens: int) -> list[Request]:
        """The device has computed `num_tokens` of a request; returns those who waited for that."""
        if self._first.get(request.group) is not request or num_tokens < self._needed(request):
            return []
        del self._first[request.group]
        return self._held.pop(request.group, [])

    def left(self, request: Request) -> list[Request]:
        """A request has ended; returns the one that goes on in its place, if any waited for it."""
        held = self._held.get(request.group, [])
        if request in held:
            held.remove(request)
        if self._first.get(request.group) is not request:
            return []
        del self._first[request.group]
        if not held:
            self._held.pop(request.group, None)
            return []
        self._first[request.group] = held.pop(0)
        return [self._first[request.group]]

    def _needed(self, request: Request) -> int:
        """Tokens that the first must have computed: what can be shared, or all of a prompt that is to be scored."""
        if request.params.prompt_logprobs is not None:
            return request.num_prompt
        return (request.num_prompt - 1) // self._block_size * self._block_size
