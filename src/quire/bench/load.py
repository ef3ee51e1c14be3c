"""The load on a server: connections that are used again, and the one place that decides when a request goes out.

due times ─► waiting ─► (room under the limit?) ─► idle or new connection ─► Exchange ─► Outcome

No task and no queue per request: timers and callbacks only, since the client must never be the bottleneck.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec

from quire.bench.exchange import MAX_ERROR_BODY, Exchange, Outcome, error_text
from quire.bench.http import EventReader, ProtocolError, ResponseReader
from quire.errors import ConfigError, UnavailableError

MOST_OPENING = 64
"""Connections opened at once before the start."""
now = time.perf_counter
"""On Linux one clock for all processes of a machine."""


class Target(msgspec.Struct, frozen=True):
    """Where requests go.

    Attributes:
        host: name or address.
        port: its port.
        tls: whether it is https.
        path: of the API, with what comes before it.
        headers: lines that each request carries, ended by CRLF.
    """

    host: str
    port: int
    tls: bool
    path: str
    headers: bytes = b""

    def request(self, body: bytes) -> bytes:
        """A whole request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        head = f"POST {self.path} HTTP/1.1\r\nhost: {host}:{self.port}\r\ncontent-length: {len(body)}\r\n"
        return b"%scontent-type: application/json\r\naccept: text/event-stream\r\n%s\r\n%s" % (
            head.encode(),
            self.headers,
            body,
        )


class Job(msgspec.Struct, frozen=True):
    """Some requests and when they are due.

    Attributes:
        target: where they go.
        indices: their numbers.
        bodies: JSON, one per request.
        due: seconds after the start, never decreasing.
        max_concurrency: most at once; None is no limit.
        timeout: seconds until one has failed.
    """

    target: Target
    indices: Sequence[int]
    bodies: Sequence[bytes]
    due: Sequence[float]
    max_concurrency: int | None
    timeout: float


class Load:
    """Owns the requests of one job, from due to done. Used once.

    Args:
        job: what to send.
        on_done: called with the number of requests that ended since the last call.
    """

    def __init__(self, job: Job, on_done: Callable[[int], None] = lambda count: None) -> None:
        self._job = job
        self._on_done = on_done
        self._requests = [job.target.request(body) for body in job.bodies]
        self._outcomes: list[Outcome] = []
        self._waiting: deque[int] = deque()
        self._next_due = 0
        self._active = 0
        self._start = 0.0
        self._idle: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ssl = ssl.create_default_context() if job.target.tls else None

    async def prepare(self) -> None:
        """Find an address that answers, and open the connections that are sure to be needed at once.

        Raises:
            UnavailableError: there is none.
        """
        self._loop = asyncio.get_running_loop()
        self._complete: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._broken)
        self._address = await find_address(self._job.target.host, self._job.target.port)
        needed = min(self._job.max_concurrency or len(self._requests), sum(due <= 0 for due in self._job.due))
        for first in range(0, needed, MOST_OPENING):
            opening = (self._connect() for _ in range(first, min(first + MOST_OPENING, needed)))
            found = await asyncio.gather(*opening, return_exceptions=True)  # who fails here fails again, and is told of
            for connection in found:
                if isinstance(connection, _Connection):
                    connection.waited = True
                    self._idle.append(connection)

    async def run(self, start: float) -> list[Outcome]:
        """Send everything; `start` is the moment from which due times count.

        Returns: one outcome per request, in the order of their indices.
        """
        self._start = start
        if not self._requests:
            return []
        try:
            self._release()
            await self._complete
        finally:
            if self._timer:
                self._timer.cancel()
            for connection in self._idle:
                connection.close()
        return sorted(self._outcomes, key=lambda outcome: outcome.index)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error of our own in a callback ends the run, which would wait for its request for ever."""
        if not self._complete.done():
            self._complete.set_exception(context.get("exception") or RuntimeError(context["message"]))

    def _release(self) -> None:
        """Let go of what is due, and come back when the next is."""
        passed = now() - self._start
        due = self._job.due
        while self._next_due < len(due) and due[self._next_due] <= passed:
            self._waiting.append(self._next_due)
            self._next_due += 1
        if self._next_due < len(due):
            self._timer = self._loop.call_later(due[self._next_due] - passed, self._release)
        self._fill()

    def _fill(self) -> None:
        limit = self._job.max_concurrency
        while self._waiting and (limit is None or self._active < limit):
            self._active += 1
            place = self._waiting.popleft()
            exchange = Exchange(self._job.indices[place], now())
            call = _Call(exchange, self._requests[place])
            call.timer = self._loop.call_later(self._job.timeout, self._expire, call)
            self._send(call)

    def _send(self, call: _Call) -> None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                connection.send(call)
                return
        task = self._loop.create_task(self._open(call))
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) and not self._complete.done():
            self._complete.set_exception(error)

    async def _open(self, call: _Call) -> None:
        try:
            connection = await self._connect()
        except OSError as error:
            call.exchange.fail(f"cannot connect: {error.strerror or error}")
            self._end(call, None)
            return
        if call.over:  # it took longer than the request may
            connection.close()
        else:
            connection.send(call)

    async def _connect(self) -> _Connection:
        family, address = self._address
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self._end),
            host=address[0],
            port=address[1],
            family=family,
            ssl=self._ssl,
            server_hostname=self._job.target.host if self._ssl else None,
        )
        return connection

    def _expire(self, call: _Call) -> None:
        call.exchange.fail(f"no complete answer within {self._job.timeout:g} s")
        if call.connection:
            call.connection.close()
        self._end(call, None)

    def _end(self, call: _Call, reusable: _Connection | None, again: bool = False) -> None:
        """A call is over; or it met a connection that the server had closed while idle, and is sent anew."""
        if reusable:
            self._idle.append(reusable)
        if call.over:
            return
        if again:
            self._send(call)
            return
        call.over = True
        if call.timer:
            call.timer.cancel()
        self._active -= 1
        self._outcomes.append(call.exchange.outcome(now()))
        self._on_done(1)
        if len(self._outcomes) == len(self._requests):
            if not self._complete.done():
                self._complete.set_result(None)
        else:
            self._fill()


class _Call:
    """An exchange and what it needs on its way."""

    __slots__ = ("connection", "exchange", "over", "request", "timer")

    def __init__(self, exchange: Exchange, request: bytes) -> None:
        self.exchange = exchange
        self.request = request
        self.connection: _Connection | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.over = False


class _Connection(asyncio.Protocol):
    """Owns one connection, and the call that is on it.

    Args:
        on_end: called with the call, the connection if it may carry another, and whether the call is to be sent anew.
    """

    def __init__(self, on_end: Callable[[_Call, _Connection | None, bool], None]) -> None:
        self._on_end = on_end
        self._call: _Call | None = None
        self.waited = False  # it has been idle: the server may close it as a request is on its way
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, call: _Call) -> None:
        """Send a call's request; the connection is idle."""
        self._call = call
        call.connection = self
        self._http = ResponseReader()
        self._events = EventReader()
        self._error_body = b""
        self._is_stream: bool | None = None
        self._transport.write(call.request)

    def close(self) -> None:
        """Close it now."""
        self._call = None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        moment = now()
        call = self._call
        if call is None:
            self._transport.abort()
            return
        exchange, http = call.exchange, self._http
        try:
            pieces = http.feed(data)
        except ProtocolError as error:
            exchange.fail(str(error))
            self._finish(reusable=False)
            return
        if self._is_stream is None and http.status:
            self._is_stream = http.status == 200 and "event-stream" in http.headers.get("content-type", "")
        if self._is_stream:
            feed, take = self._events.feed, exchange.take
            for piece in pieces:
                for payload in feed(piece):
                    take(payload, moment)
        else:
            for piece in pieces:
                self._error_body += piece[: MAX_ERROR_BODY - len(self._error_body)]
        if http.done:
            self._finish(reusable=http.keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        call = self._call
        if call is None:
            return
        if self.waited and not self._http.started:
            self._call = None
            self._on_end(call, None, True)
            return
        try:
            self._http.close()
        except ProtocolError as error:
            call.exchange.fail(str(error))
        self._finish(reusable=False)

    def _finish(self, *, reusable: bool) -> None:
        call = self._call
        assert call is not None
        self._call = None
        exchange = call.exchange
        exchange.status = self._http.status
        moment = now()
        for payload in self._events.close():
            exchange.take(payload, moment)
        if exchange.status and exchange.status != 200:
            exchange.fail(f"HTTP {exchange.status}: {error_text(self._error_body)}")
        elif self._error_body:
            exchange.fail(f"no event stream: {error_text(self._error_body)}")
        elif self._http.until_close and not exchange.ended:
            exchange.fail("connection closed before [DONE]")
        self.waited = True
        if reusable:
            self._on_end(call, self, False)
        else:
            self._transport.abort()
            self._on_end(call, None, False)


async def find_address(host: str, port: int) -> tuple[int, tuple[str, int]]:
    """(family, address) of the first of a host's addresses that takes a connection.

    Raises:
        ConfigError: no such host.
        UnavailableError: nobody listens.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"Host {host!r} cannot be found: {error.strerror or error}.") from None
    reason = ""
    for family, _, _, _, address in found:
        try:
            transport, _ = await loop.create_connection(
                asyncio.Protocol, host=str(address[0]), port=port, family=family
            )
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        transport.abort()
        return int(family), (str(address[0]), port)
    raise UnavailableError(f"No server answers at {host}:{port} ({reason}).")
