"""GET /openapi.json and /docs: what this server offers, for programs and for people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from quire.server.asgi import Receive, Scope, Send, answer
from quire.server.openapi import document
from quire.server.routing import Route
from quire.server.sse import encode
from quire.server.state import ServerState

HTML = "text/html; charset=utf-8"
_PAGE = Path(__file__).with_name("docs.html")
_MARK = b"/*DESCRIPTION*/null"


def routes_about(routes: Sequence[Route]) -> tuple[Route, ...]:
    """The table with the routes that describe it, themselves included."""

    class OpenApi(_Fixed):
        """The description of this API, in OpenAPI 3.1."""

        def make(self) -> bytes:
            return encode(document(everything))

    class Docs(_Fixed):
        """The same as a page; it loads nothing from anywhere."""

        media_type = HTML

        def make(self) -> bytes:
            data = encode(document(everything)).replace(b"</", b"<\\/")
            return _PAGE.read_bytes().replace(_MARK, data)

    everything = (
        *routes,
        Route("GET", "/openapi.json", OpenApi, needs="any"),
        Route("GET", "/docs", Docs, media_type=HTML, needs="any"),
    )
    return everything


class _Fixed(ABC):
    """Answers with bytes that are made once, when they are first asked for."""

    media_type = "application/json"

    def __init__(self, state: ServerState) -> None:
        self._data: bytes | None = None

    @abstractmethod
    def make(self) -> bytes:
        """The bytes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._data is None:
            self._data = self.make()
        await answer(send, self._data, media_type=self.media_type)
