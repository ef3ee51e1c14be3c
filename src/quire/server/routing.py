"""Routes: a table of rows, and which row answers a request: two look-ups, and a short list for paths with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from quire.frontend.validate import Request
from quire.server.asgi import App, Scope
from quire.server.errors import HttpError
from quire.server.keys import Need
from quire.server.state import ServerState


class Route(NamedTuple):
    """One row. The first line of the handler's doc string is what the API's description says about it.

    Attributes:
        method: GET or POST; HEAD comes with GET.
        path: may end in `{name}`, which stands for the rest of it, slashes included; the handler finds it in
            `scope["path_params"]`.
        handler: made once, with what all routes share.
        request: the type that its JSON bodies are checked against; None without a body.
        streams: whether it may answer with server-sent events.
        media_type: of its plain answer.
        needs: what a caller's key must be for.
    """

    method: str
    path: str
    handler: Callable[[ServerState], App]
    request: type[Request] | None = None
    streams: bool = False
    media_type: str = "application/json"
    needs: Need = "inference"


class Found(NamedTuple):
    """What answers a request.

    Attributes:
        works: whether it is work of the kind that keys have limits for.
    """

    handler: App
    needs: Need
    works: bool


class Router:
    """The routes of one application.

    Args:
        routes: the table.
        state: what the handlers share.
    """

    def __init__(self, routes: Iterable[Route], state: ServerState) -> None:
        self._exact: dict[str, dict[str, Found]] = {}
        self._prefixes: dict[str, tuple[str, dict[str, Found]]] = {}
        for route in routes:
            prefix, brace, name = route.path.partition("{")
            if brace:
                methods = self._prefixes.setdefault(prefix, (name.rstrip("}"), {}))[1]
            else:
                methods = self._exact.setdefault(route.path, {})
            works = route.request is not None and route.needs == "inference"
            methods[route.method] = Found(route.handler(state), route.needs, works)
            if route.method == "GET":
                methods.setdefault("HEAD", methods["GET"])

    def find(self, scope: Scope) -> Found:
        """What answers a request.

        Raises:
            HttpError: 404 or 405.
        """
        methods = self._exact.get(scope["path"]) or self._named(scope)
        found = methods.get(scope["method"])
        if found is None:
            allowed = ", ".join(sorted(methods))
            raise HttpError(405, f"This route takes {allowed} only.", {"allow": allowed})
        return found

    def _named(self, scope: Scope) -> dict[str, Found]:
        path: str = scope["path"]
        for prefix, (name, methods) in self._prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                scope["path_params"] = {name: path[len(prefix) :]}
                return methods
        raise HttpError(404, "There is no such route here.")
