"""GET /health (and /ping), /live, /ready, /load, /version, /metrics: for those who run the server.

None of them asks the engine for anything: what is known of it is its process, its heart and its last words. A long step
is no illness; one that takes longer than --step-timeout is.

    /live    this process answers, and the engine works, loads or is started again   restart the server if not
    /ready   requests are taken now                                                  send requests elsewhere if not
    /health  the same, for those who know only one
"""

from __future__ import annotations

from quire.observability.metrics import CONTENT_TYPE
from quire.server.asgi import Receive, Scope, Send, answer
from quire.server.sse import encode
from quire.server.state import ServerState
from quire.version import __version__


class Health:
    """200 while requests are taken; 503 with Retry-After while loading or stopping, and when the engine is dead."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state.require_service()
        await answer(send, b'{"status":"ok"}')


class Ready(Health):
    """The same as /health: the model is loaded, the engine alive, the server not stopping."""


class Live:
    """200 as long as this process answers; a dead engine that is not started again ends the process anyway."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = self._state.client
        engine = "loading" if client.ready is None else "ended" if client.dead else "running"
        body = {"status": "ok", "engine": engine, **({"reason": client.reason} if client.dead else {})}
        await answer(send, encode(body))


class Load:
    """How many requests are being served or wait to be."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stats = self._state.client.stats
        await answer(send, encode({"server_load": stats.num_running + stats.num_waiting}))


class Version:
    """Which Quire this is."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, encode({"version": __version__}))


class MetricsPage:
    """All metrics in Prometheus' text format."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, self._state.metrics.render(), media_type=CONTENT_TYPE)
