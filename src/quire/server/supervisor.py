"""Supervisor: has an engine that ended started again, so often in so long, and says when that is over.

engine dies ─► members are told ─► its process is gone ─► started again ─► ready: everything as before
                                                       └─ too often, or it does not start: the server ends, exit code 1
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from quire.errors import QuireError

log = logging.getLogger("quire.server")
WINDOW_SECONDS = 600.0
KILLED_SECONDS = 10.0
"""In which a killed process must be gone; one that hangs in the kernel may never be."""


class Engine(Protocol):
    """What is asked of `frontend.client.Client`."""

    reason: str
    detail: str

    async def wait_dead(self) -> None: ...

    async def wait_ended(self) -> int: ...

    async def wait_ready(self) -> object: ...

    def restart(self) -> None: ...


class Supervisor:
    """Owns the count of restarts.

    Args:
        engine: the client that has its process.
        max_restarts: in WINDOW_SECONDS; 0 never starts it again.
        tell: passes an order on to the other API processes.
        clock: seconds.
    """

    def __init__(
        self,
        engine: Engine,
        max_restarts: int,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_restarts = max_restarts
        self._tell = tell
        self._clock = clock
        self._restarts: deque[float] = deque()
        self.num_restarts = 0

    async def run(self) -> str:
        """Watch over a ready engine; returns why there is none any more."""
        while True:
            await self._engine.wait_dead()
            reason = self._engine.reason
            self._tell(f"dead {reason}")
            try:
                await asyncio.wait_for(self._engine.wait_ended(), KILLED_SECONDS)
            except TimeoutError:
                return f"{reason}; its process cannot be killed"
            if self._engine.detail:
                reason += f" ({self._engine.detail})"
            if self._spent():
                again = f", after {self._max_restarts} restarts in 10 minutes (--max-restarts)"
                return reason + (again if self._max_restarts else "")
            await self._restart(reason)

    def stop(self) -> None:
        """The server is stopping: from now on nothing is started again."""
        self._max_restarts = 0

    def _spent(self) -> bool:
        """Whether there is no restart left."""
        now = self._clock()
        while self._restarts and now - self._restarts[0] > WINDOW_SECONDS:
            self._restarts.popleft()
        return len(self._restarts) >= self._max_restarts

    async def _restart(self, reason: str) -> None:
        """Once; whether it came up shows in the engine's own state."""
        if self._restarts:  # what was too early may work a little later, as when memory is given back
            await asyncio.sleep(min(2.0 ** (len(self._restarts) - 1), 30.0))
        self._restarts.append(self._clock())
        self.num_restarts += 1
        log.error("%s; it is started again (%d of %d).", reason, len(self._restarts), self._max_restarts)
        begun = self._clock()
        self._engine.restart()
        try:
            await self._engine.wait_ready()
        except QuireError as error:
            log.error("the engine did not come up again: %s", error.message)
        else:
            log.warning("The engine is back after %.1f s.", self._clock() - begun)
