"""Pace: a limit that keeps requests of slow grammars out of a step until their next mask is there."""

from __future__ import annotations

from quire.engine.scheduler.request import Request


class Pace:
    """Owns who is slow, and whose mask is ready."""

    def __init__(self) -> None:
        self._ready: dict[int, bool] = {}

    def slow(self, id_: int, *, ready: bool = False) -> None:
        """From now on this request samples only when its mask is ready, as it is or is not."""
        self._ready[id_] = ready

    def wait(self, id_: int) -> None:
        """It has a new token: its next mask is not ready."""
        if id_ in self._ready:
            self._ready[id_] = False

    def forget(self, id_: int) -> None:
        """It is not slow, or not there any more."""
        self._ready.pop(id_, None)

    def begin(self, backlog: int) -> None:
        """Nothing to reset."""

    def allow(self, request: Request, count: int) -> int:
        """All but the token from which it would sample."""
        ready = self._ready.get(request.id)
        if ready is None or count < request.want or (ready and not request.num_pending):
            return count
        return count - 1

    def take(self, request: Request, count: int) -> None:
        """Nothing is used up."""

    def drop(self, request: Request) -> None:
        """Nothing is held."""
