"""What one HTTP request may be: headers, body, time. Counted while it arrives, not after."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.server.asgi import Receive, Scope, header
from quire.server.channel import KEY, Channel, channel_of
from quire.server.errors import HttpError, describe

MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 << 10
MAX_BODY_BYTES = 4 << 20
READ_SECONDS = 30.0
"""Time for the headers to be complete, and for the body."""

_TOO_LARGE = f"The headers are too large: at most {MAX_HEADERS} of {MAX_HEADER_BYTES} bytes together."


def check_headers(scope: Scope) -> None:
    """Refuse too many or too large headers.

    Raises:
        HttpError: 431.
    """
    headers = scope["headers"]
    size = sum(len(name) + len(value) for name, value in headers) + len(scope["raw_path"]) + len(scope["query_string"])
    if len(headers) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise HttpError(431, _TOO_LARGE)


async def read_json_body(scope: Scope, receive: Receive, most: int = MAX_BODY_BYTES) -> bytes:
    """The whole body of a request that carries JSON, of at most so many bytes.

    Raises:
        HttpError: 408, 413 or 415.
    """
    _check_media_type(scope)
    length = header(scope, b"content-length")
    if length is not None and length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    channel = channel_of(scope)
    body = channel.whole_body() if channel is not None else None
    if body is not None and len(body) <= most:
        return body
    try:
        async with asyncio.timeout(READ_SECONDS):
            return await _read(receive, most)
    except TimeoutError:
        raise HttpError(408, f"The body did not arrive within {READ_SECONDS:g} s.", {"connection": "close"}) from None


async def _read(receive: Receive, most: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "The client closed the connection before the body was complete.")
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        chunks.append(chunk)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(most: int) -> HttpError:
    return HttpError(413, f"The body is larger than {most} bytes.", {"connection": "close"})


def _check_media_type(scope: Scope) -> None:
    """JSON only: other types are what a hostile web page can send without asking (CSRF)."""
    media_type, _, more = (header(scope, b"content-type") or "application/json").lower().partition(";")
    media_type = media_type.strip()
    if "charset" in more and "utf-8" not in more and "utf8" not in more:
        raise HttpError(415, "The body must be JSON in UTF-8; other character sets are not taken.")
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise HttpError(415, "The body must be JSON: send the header 'content-type: application/json'.")
    if (header(scope, b"content-encoding") or "identity").lower() != "identity":
        raise HttpError(415, "Compressed bodies are not taken.")


_LATER = {"retry-after": "1"}


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a channel, and a bound on headers that have not ended yet, in bytes and seconds.

    Without the bound one client can send a header of any size into memory before any application code runs.

    Attributes:
        max_connections: of all that share a server; who comes then is told so and sent away.
    """

    max_connections = 4096
    _head_bytes = 0
    _in_head = True
    _num_messages = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._channels: list[Channel] = []
        if len(self.connections) > self.max_connections:
            most = self.max_connections
            self._refuse(HttpError(503, f"There are {most} connections, as many as --max-connections allows.", _LATER))
            return
        self._timer = self.loop.call_later(READ_SECONDS, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        for channel in self._channels:
            channel.gone()
        self._channels.clear()

    def data_received(self, data: bytes) -> None:
        before = self._num_messages
        super().data_received(data)
        if self._in_head and self._num_messages == before and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._timer is None:
                self._timer = self.loop.call_later(READ_SECONDS, self._head_is_late)
            if self._head_bytes > 4 * MAX_HEADER_BYTES:
                self._refuse(HttpError(431, _TOO_LARGE))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._stop_timer()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not None and self.cycle is not before:
            channel = self.scope[KEY] = Channel(self.cycle)  # type: ignore[literal-required]
            # pipelined requests wait here beside the one that is being answered
            self._channels = [known for known in self._channels if known.is_open] + [channel]

    def on_message_complete(self) -> None:
        self._in_head = True
        self._num_messages += 1
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What does not parse as HTTP gets an error in our form, too."""
        self._refuse(HttpError(400, msg))

    def _head_is_late(self) -> None:
        if self._in_head and not self.transport.is_closing():
            self._refuse(HttpError(408, f"The headers did not arrive within {READ_SECONDS:g} s."))

    def _refuse(self, error: HttpError) -> None:
        """Answer by hand: there is no request yet that could be."""
        _, body, _ = describe(error, "connection")
        phrase = HTTPStatus(error.status).phrase
        head = f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
        self.transport.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def guarded_protocol(max_connections: int) -> type[GuardedProtocol]:
    """The protocol with a bound on connections: uvicorn makes its objects from a class."""
    return type("BoundedProtocol", (GuardedProtocol,), {"max_connections": max_connections})
