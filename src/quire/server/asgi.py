"""The few ASGI words that the handlers share: types, plain answers, and the end of a client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from quire.server.channel import channel_of

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = "application/json"


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as ASGI wants them."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def answer(
    send: Send,
    body: bytes,
    *,
    status: int = 200,
    media_type: str = JSON,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a whole response."""
    fields = {"content-type": media_type, "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": encode_headers(fields)})
    await send({"type": "http.response.body", "body": body})


class ClientGone(Exception):
    """The client has closed the connection; nobody waits for an answer."""


@asynccontextmanager
async def until_gone(scope: Scope, receive: Receive) -> AsyncIterator[None]:
    """Cancel what is inside as soon as the client closes the connection.

    The request's body must have been read before.

    Raises:
        ClientGone: that happened.
    """
    task = asyncio.current_task()
    watching = True
    gone = False

    def leave() -> None:
        nonlocal gone
        if watching and task is not None and not gone:
            gone = True
            task.cancel()

    stop_watching = _watch(scope, receive, leave)
    try:
        yield
    except asyncio.CancelledError:
        if gone and task is not None and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        watching = False
        stop_watching()


def _watch(scope: Scope, receive: Receive, leave: Callable[[], None]) -> Callable[[], object]:
    """Have `leave` called when the client goes; returns what ends the watch."""
    channel = channel_of(scope)
    if channel is not None:
        channel.when_gone(leave)
        return lambda: channel.when_gone(None)

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leave()

    return asyncio.create_task(watch()).cancel
