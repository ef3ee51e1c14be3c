"""GET /v1/models and /v1/models/{name}."""

from __future__ import annotations

from typing import Any

from quire.server.asgi import Receive, Scope, Send, answer
from quire.server.sse import encode
from quire.server.state import ServerState


class Models:
    """Lists the names under which the model is served, or describes one of them."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        max_model_len = self._state.require_service().max_model_len
        name = scope.get("path_params", {}).get("name")
        if name is not None:
            self._state.check_model(name)
            await answer(send, encode(self._card(name, max_model_len)))
            return
        cards = [self._card(known, max_model_len) for known in self._state.names]
        await answer(send, encode({"object": "list", "data": cards}))

    def _card(self, name: str, max_model_len: int) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._state.created,
            "owned_by": "quire",
            "root": self._state.names[0],
            "parent": None,
            "max_model_len": max_model_len,
        }
