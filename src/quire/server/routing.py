"""Which handler answers a method and a path: two look-ups, and a short list for paths with a name in them."""

from __future__ import annotations

from collections.abc import Iterable

from quire.server.asgi import App, Scope
from quire.server.errors import HttpError


class Router:
    """The routes of one application.

    Args:
        routes: (method, path, handler). A path may end in `{name}`, which stands for the rest of it, slashes included;
            the handler finds it in `scope["path_params"]`.
    """

    def __init__(self, routes: Iterable[tuple[str, str, App]]) -> None:
        self._exact: dict[str, dict[str, App]] = {}
        self._prefixes: dict[str, tuple[str, dict[str, App]]] = {}
        for method, path, handler in routes:
            prefix, brace, name = path.partition("{")
            if brace:
                methods = self._prefixes.setdefault(prefix, (name.rstrip("}"), {}))[1]
            else:
                methods = self._exact.setdefault(path, {})
            methods[method] = handler
            if method == "GET":
                methods.setdefault("HEAD", handler)

    def find(self, scope: Scope) -> App:
        """The handler of a request.

        Raises:
            HttpError: 404 or 405.
        """
        methods = self._exact.get(scope["path"]) or self._named(scope)
        handler = methods.get(scope["method"])
        if handler is None:
            allowed = ", ".join(sorted(methods))
            raise HttpError(405, f"This route takes {allowed} only.", {"allow": allowed})
        return handler

    def _named(self, scope: Scope) -> dict[str, App]:
        path: str = scope["path"]
        for prefix, (name, methods) in self._prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                scope["path_params"] = {name: path[len(prefix) :]}
                return methods
        raise HttpError(404, "There is no such route here.")
