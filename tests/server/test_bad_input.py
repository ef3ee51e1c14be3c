"""Bad input on every route: an answer of the 4xx kind in OpenAI's form, at once, and the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from fake_engine import Running, running

from quire.server.app import ROUTES

JSON = {"content-type": "application/json"}
POSTS = [route.path for route in ROUTES if route.request is not None]
FIELDS = {
    "/v1/chat/completions": b'"messages":[{"role":"user","content":"x"}]',
    "/v1/completions": b'"prompt":"x"',
    "/tokenize": b'"prompt":"x"',
    "/detokenize": b'"tokens":[1]',
}
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"hello",
    "cut off": b'{"model": "fake"',
    "two values": b"{} {}",
    "trailing comma": b'{"model": "fake",}',
    "single quotes": b"{'model': 'fake'}",
    "comment": b'{/* x */"model":"fake"}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "list": b"[]",
    "string": b'"x"',
    "number": b"5",
    "null": b"null",
    "UTF-16": '{"model": "fake"}'.encode("utf-16"),
    "latin-1": '{"model": "ä"}'.encode("latin-1"),
    "byte order mark": b'\xef\xbb\xbf{"model": "fake"}',
    "overlong UTF-8": b'{"model": "\xc0\xaf"}',
    "zero byte": b'{"model": "fa\x00ke"}',
    "control character": b'{"model": "fa\nke"}',
    "lone surrogate": b'{"model": "\\ud800"}',
    "deep list": b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep object": b'{"x": ' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}",
    "unclosed": b"[" * 100_000,
    "huge number": b'{"model": 1' + b"0" * 10_000 + b"}",
    "huge exponent": b'{"model": 1e999999}',
    "wrong type": b'{"model": {"a": 1}}',
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def still_serving(server: Running) -> Iterator[None]:
    yield
    answer = httpx.post(server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1})
    assert answer.status_code == 200 and server.client.num_in_flight == 0


def check(answer: httpx.Response, *statuses: int) -> dict[str, object]:
    assert answer.status_code in statuses, (answer.status_code, answer.text[:300])
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    assert len(answer.content) < 2000 and "Traceback" not in answer.text and "site-packages" not in answer.text
    assert answer.headers["content-type"] == "application/json" and answer.headers["x-request-id"]
    return error


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("kind", BODIES)
def test_bodies(server: Running, path: str, kind: str) -> None:
    check(httpx.post(server.url + path, content=BODIES[kind], headers=JSON), 400, 404)


@pytest.mark.parametrize("path", POSTS)
def test_a_name_given_twice(server: Running, path: str) -> None:
    good = FIELDS[path]
    for body, name in (
        (b"{%b,%b}" % (good, good), None),
        (b'{%b,"model":"fake","model":"fake"}' % good, "model"),
        (b'{%b,"model" : "fake", "x": [{"a\\"b:": 1, "a\\u0022b:": 2}]}' % good, 'a"b:'),
    ):
        error = check(httpx.post(server.url + path, content=body, headers=JSON), 400)
        assert "is given twice" in str(error["message"]) and (name is None or name in str(error["message"]))
    fine = b'{%b,"x":"a:b\\":\\\\", "y" : {"\\\\":":::"}, "z":[{"x":1},{"x":2}]}' % good
    assert httpx.post(server.url + path, content=fine, headers=JSON).status_code == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {**JSON, "content-encoding": "gzip"},
        {**JSON, "content-encoding": "br"},
    ],
)
def test_media_types(server: Running, path: str, headers: dict[str, str]) -> None:
    check(httpx.post(server.url + path, content=b"{%b}" % FIELDS[path], headers=headers), 415)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_methods(server: Running, route: object) -> None:
    path = route.path.replace("{name}", "fake")  # type: ignore[attr-defined]
    taken = {r.method for r in ROUTES if r.path == route.path}  # type: ignore[attr-defined]
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        if method not in taken:
            answer = httpx.request(method, server.url + path)
            if method == "BREW":  # no method that the parser knows
                assert answer.status_code == 400
            else:
                check(answer, 405)
                assert set(answer.headers["allow"].split(", ")) == taken | ({"HEAD"} if "GET" in taken else set())
    head = httpx.head(server.url + path)
    assert head.status_code == (200 if "GET" in taken else 405) and head.content == b""


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/models/", "/v1/chat/completions/", "/v1/completions/x", "/v2/models", "//docs"],
)
def test_paths(server: Running, path: str) -> None:
    check(httpx.post(server.url + path, json={}), 404)


def _fields() -> list[tuple[str, str, bytes]]:
    """(path, field, value) in raw JSON."""
    numbers = [b"NaN", b"1e400", b"-1e400", b"9" * 400, b'"5"', b"true", b"[]", b"{}", b"1.5e308"]
    both = ["n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "presence_penalty"]
    rows = [(path, name, value) for path in POSTS[:2] for name in both for value in numbers]
    wide = [b"9223372036854775808", b"-9223372036854775809", b"1" + b"0" * 30]
    rows += [(path, name, value) for path in POSTS[:2] for name in ("n", "seed", "max_tokens") for value in wide]
    rows += [
        ("/v1/completions", "prompt", value)
        for value in (
            b"[]",
            b"[[]]",
            b"[-1]",
            b"[512]",
            b"[9223372036854775808]",
            b"[1.0]",
            b"[true]",
            b'[1,"x"]',
            b"{}",
        )
    ]
    rows += [("/detokenize", "tokens", value) for value in (b"[-1]", b"[512]", b"[1e3]", b'["1"]', b"5", b"[null]")]
    rows += [
        ("/v1/chat/completions", "messages", value)
        for value in (
            b"[]",
            b"{}",
            b"[[]]",
            b"[{}]",
            b'[{"role":5}]',
            b'[{"role":"user"}]',
            b'[{"role":"","content":"x"}]',
        )
    ]
    return rows


def test_values(server: Running) -> None:
    """Every one refused, and named; on one connection, so that an answer cannot be mixed up with another's."""
    with httpx.Client(base_url=server.url, headers=JSON) as http:
        for path, name, value in _fields():
            needed = b"" if name in ("prompt", "tokens", "messages") else FIELDS[path] + b","
            answer = http.post(path, content=b'{%b"%b":%b}' % (needed, name.encode(), value))
            if (name, value) in {("temperature", b"1.5e308")}:
                assert answer.status_code == 400
                continue
            error = check(answer, 400)
            assert error["param"] == name or error["code"] == "invalid_json" or "JSON" in str(error["message"]), (
                name,
                value,
                error,
            )


@pytest.mark.parametrize(
    "raw",
    [
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n{}",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    ],
)
def test_what_is_hardly_http(server: Running, raw: bytes) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(raw)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert not answer or (head.startswith(b"HTTP/1.1 4") and set(json.loads(body)["error"]) >= {"message", "code"})
