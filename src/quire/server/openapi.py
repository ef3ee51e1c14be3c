"""The API's description in OpenAPI 3.1, from the route table and the very types that requests are checked with."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import msgspec

from quire.server.notes import note_on
from quire.server.routing import Route
from quire.version import __version__

_REF = "#/components/schemas/{name}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole description."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Quire",
            "version": __version__,
            "description": "A null in a request is the same as leaving the field out. Fields that are not listed have "
            "no effect and are named in `warnings` of the answer and in the header x-quire-warnings; with --strict "
            "they are an error.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas(routes), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def schemas(routes: Sequence[Route]) -> dict[str, Any]:
    """The request types by name, with what is known about the range of their fields."""
    kinds = list(dict.fromkeys(route.request for route in routes if route.request is not None))
    _, found = msgspec.json.schema_components(kinds, ref_template=_REF)
    for kind in kinds:
        found[kind.__name__]["description"] = summary(kind)
    for kind_name, schema in found.items():
        for name, field in schema.get("properties", {}).items():
            if note := note_on(kind_name, name):
                field["description"] = note
    return found


def summary(documented: object) -> str:
    """The first paragraph of a doc string, on one line."""
    return " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary(route.handler), "responses": _responses(route)}
    if route.request is not None:
        ref = _REF.format(name=route.request.__name__)
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": {"$ref": ref}}}}
    _, brace, name = route.path.partition("{")
    if brace:
        name = name.rstrip("}")
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}}]
    return operation


def _responses(route: Route) -> dict[str, Any]:
    kind = "string" if route.media_type.startswith("text/") else "object"
    content: dict[str, Any] = {route.media_type: {"schema": {"type": kind}}}
    if route.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {
        "description": "What was wrong: the field, the value seen, what is allowed.",
        "content": {"application/json": {"schema": {"$ref": _REF.format(name="Error")}}},
    }
    return {"200": {"description": "The answer.", "content": content}, "4XX": error, "5XX": error}
