"""The application: a table of routes behind one guard that checks limits and keys and formats every error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quire.server.asgi import App, ClientGone, Message, Receive, Scope, Send, answer
from quire.server.auth import Gate
from quire.server.channel import KEY
from quire.server.chat import ChatCompletions
from quire.server.completions import Completions
from quire.server.errors import describe
from quire.server.limits import check_headers
from quire.server.models import Models
from quire.server.ops import Health, Load, MetricsPage, Version
from quire.server.routing import Router
from quire.server.state import ServerState, request_id
from quire.server.tokenize import Detokenize, Tokenize

ROUTES: tuple[tuple[str, str, Callable[[ServerState], App]], ...] = (
    ("POST", "/v1/chat/completions", ChatCompletions),
    ("POST", "/v1/completions", Completions),
    ("GET", "/v1/models", Models),
    ("GET", "/v1/models/{name}", Models),
    ("POST", "/tokenize", Tokenize),
    ("POST", "/detokenize", Detokenize),
    ("GET", "/health", Health),
    ("GET", "/ping", Health),
    ("POST", "/ping", Health),
    ("GET", "/load", Load),
    ("GET", "/version", Version),
    ("GET", "/metrics", MetricsPage),
)


class Application:
    """The ASGI application.

    Args:
        state: what the routes share.
        gate: who may enter.
    """

    def __init__(self, state: ServerState, gate: Gate) -> None:
        self._gate = gate
        self._router = Router((method, path, make(state)) for method, path, make in ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        id_ = scope["quire.request_id"] = request_id(scope)
        try:
            check_headers(scope)
            self._gate.check(scope)
            await self._router.find(scope)(scope, receive, watched_send)
        except ClientGone:
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - this is the place that answers for all of them
            status, body, headers = describe(error, id_)
            if not started:
                await answer(send, body, status=status, headers={"x-request-id": id_, **headers})
        finally:
            scope.pop(KEY, None)  # they refer to one another
