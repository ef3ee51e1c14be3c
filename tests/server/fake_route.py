"""An API of one file, as CONTRIBUTING describes it: a request type, a handler, and the row for the table of routes."""

from __future__ import annotations

from quire.frontend.decode import decode
from quire.frontend.validate import Request
from quire.server.asgi import Receive, Scope, Send, answer
from quire.server.generate import warnings_header
from quire.server.limits import read_json_body
from quire.server.routing import Route
from quire.server.sse import encode
from quire.server.state import ServerState


class CountRequest(Request, kw_only=True):
    """POST /v1/count."""

    text: str
    twice: bool = False


class Count:
    """How many tokens a text has."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self._state.require_service()
        request, warnings = decode(await read_json_body(scope, receive), CountRequest, strict=self._state.strict)
        self._state.check_model(request.model)
        count = len(await service.encode_async(request.text)) * (2 if request.twice else 1)
        await answer(send, encode({"count": count, "warnings": warnings}), headers=warnings_header(warnings))


ROUTE = Route("POST", "/v1/count", Count, CountRequest)
