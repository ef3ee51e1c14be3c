"""How long a request may take: what its field `timeout` or its header x-request-timeout says, the smaller one."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from quire.errors import DeadlineError, RequestError
from quire.frontend.streams import RequestStream
from quire.frontend.validate import MAX_TIMEOUT
from quire.server.asgi import Scope, header

HEADER = "x-request-timeout"
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


class Deadline:
    """The end of one request's time, if it has one.

    Args:
        seconds: from `arrival` on; None for ever.
        arrival: monotonic seconds.
    """

    def __init__(self, seconds: float | None, arrival: float) -> None:
        self._seconds = seconds
        self._end = None if seconds is None else arrival + seconds

    @classmethod
    def of(cls, scope: Scope, timeout: float | None, arrival: float) -> Deadline:
        """What a request asks for.

        Raises:
            RequestError: the header is not a number of seconds.
        """
        text = header(scope, HEADER.encode())
        if text is None:
            return cls(timeout, arrival)
        if not _NUMBER.fullmatch(text.strip()) or not 0 < float(text) <= MAX_TIMEOUT:
            raise RequestError(f"The header {HEADER} must be a number of seconds in (0, {MAX_TIMEOUT}].", HEADER)
        return cls(min(float(text), timeout or MAX_TIMEOUT), arrival)

    def start_by(self, other: float) -> float:
        """The earlier of this end and another time, 0 being never: what is not begun by then is for nobody."""
        ends = [end for end in (self._end, other) if end]
        return min(ends, default=0.0)

    @asynccontextmanager
    async def around(self, applies: bool = True) -> AsyncIterator[None]:
        """Cancel what is inside at the end.

        Raises:
            DeadlineError: that happened.
        """
        left = self._left if applies else None
        try:
            async with asyncio.timeout(left) as timer:
                yield
        except TimeoutError:
            if timer.expired():
                raise self._error() from None
            raise

    @contextmanager
    def over(self, streams: Iterable[RequestStream]) -> Any:
        """Cut streams off at the end; whoever reads them gets a DeadlineError."""
        if self._left is None:
            yield
            return

        def cut() -> None:
            for stream in streams:
                stream.cut(self._error())

        timer = asyncio.get_running_loop().call_later(self._left, cut)
        try:
            yield
        finally:
            timer.cancel()

    @property
    def _left(self) -> float | None:
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def _error(self) -> DeadlineError:
        return DeadlineError(f"The request was not done within its timeout of {self._seconds:g} s.", "timeout")
