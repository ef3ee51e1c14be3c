"""The application: a table of routes behind one guard that checks limits and keys and formats every error."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from quire.frontend.validate import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from quire.server.admission import VISIT
from quire.server.asgi import ClientGone, Message, Receive, Scope, Send, answer
from quire.server.auth import Gate
from quire.server.channel import KEY
from quire.server.chat import ChatCompletions
from quire.server.completions import Completions
from quire.server.docs import routes_about
from quire.server.errors import describe
from quire.server.limits import check_headers
from quire.server.models import Models
from quire.server.ops import Health, Live, Load, MetricsPage, Ready, Version
from quire.server.routing import Route, Router
from quire.server.state import ServerState, request_id
from quire.server.tokenize import Detokenize, Tokenize

ROUTES: tuple[Route, ...] = routes_about(
    (
        Route("POST", "/v1/chat/completions", ChatCompletions, ChatRequest, streams=True),
        Route("POST", "/v1/completions", Completions, CompletionRequest, streams=True),
        Route("GET", "/v1/models", Models),
        Route("GET", "/v1/models/{name}", Models),
        Route("POST", "/tokenize", Tokenize, TokenizeRequest),
        Route("POST", "/detokenize", Detokenize, DetokenizeRequest),
        Route("GET", "/health", Health),
        Route("GET", "/ready", Ready),
        Route("GET", "/live", Live),
        Route("GET", "/ping", Health),
        Route("POST", "/ping", Health),
        Route("GET", "/load", Load, needs="metrics"),
        Route("GET", "/version", Version, needs="any"),
        Route("GET", "/metrics", MetricsPage, media_type="text/plain", needs="metrics"),
    )
)

OPERATION_ROUTES = tuple(route for route in ROUTES if route.path in ("/metrics", "/health", "/ready", "/live"))
"""For a port of their own."""


class Application:
    """The ASGI application.

    Args:
        state: what the routes share.
        gate: who may enter.
        routes: the table.
    """

    def __init__(self, state: ServerState, gate: Gate, routes: Sequence[Route] = ROUTES) -> None:
        self._gate = gate
        self._state = state
        self._router = Router(routes, state)

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
        visit = None
        try:
            check_headers(scope)
            key = self._gate.check(scope)
            found = self._router.find(scope)
            self._gate.allow(key, found.needs, scope["path"])
            if found.works:
                visit = scope[VISIT] = self._state.admission.enter(key)
            await found.handler(scope, receive, watched_send)
        except ClientGone:
            return
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - this is the place that answers for all of them
            status, body, headers = describe(error, id_)
            self._state.metrics.refused(status)
            if not started:
                await answer(send, body, status=status, headers={"x-request-id": id_, **headers})
        finally:
            if visit is not None:
                visit.leave()
            scope.pop(KEY, None)  # they refer to one another
