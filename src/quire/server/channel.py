"""The short way to one response's connection, beside ASGI: write without waiting, be called when the client leaves.

An ASGI message costs a coroutine, a dictionary and several checks; a token of a stream needs none of them. Whoever
finds no channel in the scope, under another web server say, takes ASGI's way: the bytes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

KEY = "quire.channel"


class Channel:
    """Owns nothing: a view of uvicorn's request and response.

    Args:
        cycle: uvicorn's state of one request and its response.
    """

    __slots__ = ("_chunked", "_cycle", "_flow", "_on_gone", "_transport")

    def __init__(self, cycle: Any) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._chunked = False
        self._on_gone: Callable[[], None] | None = None

    def whole_body(self) -> bytes | None:
        """The request's body if all of it is here, else None; then it must be received."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        return bytes(cycle.body)

    def begin(self) -> None:
        """The response's head was sent: from now on pieces may follow on the short way."""
        self._chunked = bool(self._cycle.chunked_encoding) and not self._cycle.disconnected

    def end(self) -> None:
        """No more of them: the end goes ASGI's way."""
        self._chunked = False

    def write_now(self, data: bytes) -> None:
        """Write a piece of a chunked body without waiting. Only while `ready`."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    @property
    def ready(self) -> bool:
        """Whether `write_now` may be called: a chunked response is under way, and its reader keeps up."""
        return self._chunked and not self._flow.write_paused

    def when_gone(self, call: Callable[[], None] | None) -> None:
        """Have `call` called if the client closes the connection; at once if it has."""
        self._on_gone = call
        if call is not None and self._cycle.disconnected:
            call()

    @property
    def is_open(self) -> bool:
        """Whether the response has not ended."""
        return not self._cycle.response_complete

    def gone(self) -> None:
        """The connection is closed; said by the protocol."""
        self._chunked = False
        if self.is_open:
            self._cycle.disconnected = True
            if self._on_gone is not None:
                self._on_gone()


def channel_of(scope: MutableMapping[str, Any]) -> Channel | None:
    """The channel of a request, where the protocol gives one."""
    found: Channel | None = scope.get(KEY)
    return found
