"""The API's description is what is served: routes, fields, types; as a file, as a page, and for an API added later."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_route
import httpx
import msgspec
import pytest
from fake_engine import FakeClient, Running, running

from quire.errors import RequestError
from quire.frontend.aliases import REQUEST_FIELDS
from quire.frontend.decode import decode
from quire.frontend.validate import Request
from quire.server.app import ROUTES
from quire.server.docs import routes_about
from quire.server.notes import NOTES
from quire.server.openapi import document, schemas

KINDS = list(dict.fromkeys(route.request for route in ROUTES if route.request is not None))
NEEDED: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "prompt": "x", "tokens": [1]}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture(scope="module")
def served(server: Running) -> dict[str, Any]:
    answer = httpx.get(server.url + "/openapi.json")
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def test_every_route_is_described_and_every_description_is_served(server: Running, served: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, methods in served["paths"].items() for method in methods}
    assert described == {(route.method, route.path) for route in ROUTES}
    for method, path in described:
        answer = httpx.request(method, server.url + path.replace("{name}", "fake"), json={})
        assert answer.status_code in (200, 400), (method, path)
        operation = served["paths"][path][method.lower()]
        assert operation["summary"]
        if answer.status_code == 200:
            assert answer.headers["content-type"].split(";")[0] in {
                kind.split(";")[0] for kind in operation["responses"]["200"]["content"]
            }
        else:
            assert "requestBody" in operation and set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: type[Request], served: dict[str, Any]) -> None:
    schema = served["components"]["schemas"][kind.__name__]
    assert list(schema["properties"]) == list(kind.__struct_fields__)
    required = [field.name for field in msgspec.structs.fields(kind) if field.required]
    assert schema.get("required", []) == required and set(required) <= set(NEEDED)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field) for kind in KINDS for field in kind.__struct_fields__], ids=lambda v: str(v)
)
def test_described_types_are_the_checked_ones(kind: type[Request], field: str, served: dict[str, Any]) -> None:
    """A value of a type that the description does not allow is refused, and the field is named."""
    schema = served["components"]["schemas"][kind.__name__]["properties"][field]
    allowed = set(re.findall(r'"(?:type|\$ref)": "([^"]+)"', json.dumps(schema)))
    samples = {"string": "x", "boolean": True, "number": 1.5, "array": [[]], "object": {"x": [[]]}}
    if not allowed:
        return  # the type says anything; what it takes is checked by hand
    needed = {name: value for name, value in NEEDED.items() if name in _required(kind)}
    for name, value in samples.items():
        if name in allowed or (name == "object" and any("schemas" in ref for ref in allowed)):
            continue
        if kind.__name__ == "TokenizeRequest" and field not in ("prompt", "messages"):
            needed = {"prompt": "x"}
        with pytest.raises(RequestError) as caught:
            decode(json.dumps({**needed, field: value}).encode(), kind)
        assert caught.value.param == field, (field, value, caught.value.message)


def _required(kind: type[Request]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind) if field.required}


def test_notes_are_about_fields_that_exist() -> None:
    fields = {(name, field) for name, schema in schemas(ROUTES).items() for field in schema["properties"]}
    names = {field for _, field in fields}
    for key in NOTES:
        kind, _, field = key.rpartition(".")
        assert (kind, field) in fields if kind else field in names, key
    assert set(REQUEST_FIELDS.values()) <= names


def test_the_page_needs_nothing_from_elsewhere(server: Running, served: dict[str, Any]) -> None:
    page = httpx.get(server.url + "/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8" and len(page.content) < 64_000
    assert not re.search(r"(?:src|href|import|url\()\s*=?\s*[\"'(]?https?:", page.text) and "<link" not in page.text
    found = re.search(r"const api = (.*);\n", page.text)
    assert found and json.loads(found.group(1).replace("<\\/", "</")) == served


def test_the_reference_is_up_to_date() -> None:
    path = Path(__file__).parents[2] / "tools" / "api_reference.py"
    spec = importlib.util.spec_from_file_location("api_reference", path)
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    assert tool.text() == tool.TARGET.read_text(), "run python tools/api_reference.py"


def test_something_is_said_about_every_field() -> None:
    for kind, schema in document(ROUTES)["components"]["schemas"].items():
        for name, field in schema["properties"].items():
            assert kind == "Error" or field.get("description"), f"{kind}.{name} has no note in server/notes.py"


def test_a_new_api_is_one_file_and_one_row() -> None:
    """Guarded, checked, warned about, described: all of it comes with the row."""
    table = routes_about((*ROUTES[:-2], fake_route.ROUTE))
    assert "CountRequest" in document(table)["components"]["schemas"]
    with running(FakeClient(), routes=table, keys=["secret"]) as server:
        url, key = server.url + "/v1/count", {"authorization": "Bearer secret"}
        assert httpx.post(url, json={"text": "Hello"}).status_code == 401
        with httpx.Client(headers=key) as http:
            answer = http.post(url, json={"text": "Hello", "twise": True})
            once = answer.json()["count"]
            assert once > 0 and "Did you mean 'twice'?" in answer.headers["x-quire-warnings"]
            assert http.post(url, json={"text": "Hello", "twice": True}).json()["count"] == 2 * once
            wrong = http.post(url, json={"text": 5})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "text")
            assert http.get(url).status_code == 405 and http.get(url).headers["allow"] == "POST"
            assert "/v1/count" in http.get(server.url + "/openapi.json").json()["paths"]
            assert "CountRequest" in http.get(server.url + "/docs").text
