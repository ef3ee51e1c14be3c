"""Server-sent events, with as little work per token as there can be: bytes that do not change are made once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from quire.server.asgi import Send, encode_headers
from quire.server.channel import Channel

DONE = b"data: [DONE]\n\n"
_HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """One event that carries JSON."""
    return b"data: " + encode(value) + b"\n\n"


class EventStream:
    """Owns one response: starts it with the first write, ends it once. In between its channel may be written to.

    Args:
        send: the ASGI channel.
        headers: besides those of every stream.
        channel: the short way, if there is one.
    """

    __slots__ = ("_headers", "_send", "_starting", "channel", "started")

    def __init__(self, send: Send, headers: dict[str, str] | None = None, channel: Channel | None = None) -> None:
        self._send = send
        self._headers = {**_HEADERS, **(headers or {})}
        self.channel = channel
        self._starting = asyncio.Lock()
        self.started = False

    async def write(self, data: bytes) -> None:
        """Send events; waits while the client reads too slowly."""
        if not self.started:
            async with self._starting:  # several choices share one response
                if not self.started:
                    head = {"type": "http.response.start", "status": 200, "headers": encode_headers(self._headers)}
                    await self._send(head)
                    self.started = True
                    if self.channel is not None:
                        self.channel.begin()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = DONE) -> None:
        """Send the last events and close the response."""
        if not self.started:
            await self.write(data)
            data = b""
        if self.channel is not None:
            self.channel.end()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


class ChunkWriter:
    """Chunks of one choice whose text is all that changes.

    Args:
        template: a chunk in which the text to replace is `PLACE`.
    """

    __slots__ = ("_after", "_before")

    PLACE = "\u0001text\u0001"

    def __init__(self, template: Any) -> None:
        before, after = encode(template).split(encode(self.PLACE))
        self._before, self._after = b"data: " + before, after + b"\n\n"

    def chunk(self, text: str) -> bytes:
        """The event for some new text."""
        return self._before + encode(text) + self._after
