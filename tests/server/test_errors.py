"""Every error, from every place, has the one body and tells nothing it should not."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeClient, Running, running

from quire.server.app import ROUTES
from quire.server.limits import MAX_BODY_BYTES

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as server:
        yield server


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url) as http:
        yield http


def check(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error in an answer, which must have exactly our form."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"] and list(body["error"]) == ["message", "type", "param", "code"]
    assert answer.headers["content-type"] == "application/json"
    for word in ("0x", "/home", "site-packages", "Traceback", 'File "'):
        assert word not in answer.text
    error: dict[str, Any] = body["error"]
    return error


def test_routes(http: httpx.Client) -> None:
    check(http.get("/nothing"), 404)
    check(http.get("/v1/chat/completions/"), 404)
    check(http.get(CHAT), 405)
    check(http.post("/health"), 405)
    check(http.request("TRACE", "/health"), 405)
    check(http.request("BREW", "/health"), 400)
    check(http.get("/v1/models/no/such"), 404)
    assert http.get("/v1/models/org/fake").status_code == 200


def test_bodies(http: httpx.Client) -> None:
    json_type = {"content-type": "application/json"}
    assert check(http.post(CHAT, content=b"{", headers=json_type), 400)["code"] == "invalid_json"
    check(http.post(CHAT, content=b"[" * 100_000, headers=json_type), 400)
    check(http.post(CHAT, content=json.dumps(BODY), headers={"content-type": "text/plain"}), 415)
    check(http.post(CHAT, content=b"x", headers={**json_type, "content-encoding": "gzip"}), 415)
    assert http.post(CHAT, content=json.dumps(BODY)).status_code == 200


def test_large_bodies(http: httpx.Client, server: Running) -> None:
    large = b'{"x":"' + b"a" * (MAX_BODY_BYTES + 10) + b'"}'
    check(http.post(CHAT, content=large, headers={"content-type": "application/json"}), 413)

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(large), 1 << 20):
            yield large[at : at + (1 << 20)]

    with httpx.Client(base_url=server.url) as other:
        check(other.post(CHAT, content=chunks(), headers={"content-type": "application/json"}), 413)


def test_headers(http: httpx.Client) -> None:
    check(http.get("/health", headers={f"x-{i}": "1" for i in range(101)}), 431)
    check(http.get("/health", headers={"x-large": "a" * 17_000}), 431)
    check(http.get("/health?" + "q" * 17_000), 431)


def test_endless_header_is_cut(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nx-large: ")
        answer = b""
        try:
            for _ in range(1000):
                sock.sendall(b"a" * 65536)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            answer = sock.recv(65536)
        except ConnectionResetError:
            return
    assert answer.startswith(b"HTTP/1.1 431 ") and b'{"error":' in answer


def test_slow_header_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.server.limits.READ_SECONDS", 0.2)
    with running() as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\n")
            assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection((host, int(port)), timeout=5) as sock:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
            assert sock.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_pipelined_and_keep_alive(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    request = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=5) as sock:
        sock.sendall(request * 3)
        answer = b""
        while answer.count(b'{"version"') < 3:
            answer += sock.recv(65536)
        for _ in range(300):  # more bytes of headers than one head may have
            sock.sendall(request)
            assert b"200 OK" in sock.recv(65536)


def test_large_body_is_no_large_header(http: httpx.Client) -> None:
    words = [{"role": "user", "content": "hi " * 20}] * 8_000
    answer = http.post(CHAT, json={"messages": words})
    assert check(answer, 400)["code"] == "context_length_exceeded"


def test_unknown_fields_are_named(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={**BODY, "user": "me", "wanted\nx": 1})
    assert answer.json()["warnings"] == ["user has no effect here.", "wanted\\nx has no effect here."]
    assert answer.headers["x-quire-warnings"].startswith("user has no effect here.")
    answer = http.post(CHAT, json={**BODY, "reasoning_effort": "low"})
    assert "reasoning_effort" in answer.json()["warnings"][0]
    assert "reasoning_effort" in answer.headers["x-quire-warnings"]
    assert "warnings" not in http.post(CHAT, json=BODY).json()
    assert "x-quire-warnings" not in http.post(CHAT, json=BODY).headers


def test_request_ids(http: httpx.Client) -> None:
    assert http.post(CHAT, json=BODY, headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    assert http.post(CHAT, json=BODY, headers={"x-request-id": "a" * 200}).headers["x-request-id"] != "a" * 200
    assert http.get("/nothing", headers={"x-request-id": "mine-2"}).headers["x-request-id"] == "mine-2"


def test_unexpected_errors_leak_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with running() as server:
        server.state.service.start = lambda prepared: 1 / 0  # type: ignore[union-attr, method-assign, assignment]
        for stream in (False, True):
            answer = httpx.post(server.url + CHAT, json={**BODY, "stream": stream})
            error = check(answer, 500)
            assert answer.headers["x-request-id"] in error["message"] and "ZeroDivision" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_failed_in_the_engine(caplog: pytest.LogCaptureFixture) -> None:
    with running(FakeClient(fail_after=0)) as server:
        assert "secret" not in check(httpx.post(server.url + CHAT, json=BODY), 500)["message"]
        check(httpx.post(server.url + CHAT, json={**BODY, "stream": True}), 500)
    assert "secret" in caplog.text
    with running(FakeClient(fail_after=3)) as server:
        answer = httpx.post(server.url + CHAT, json={**BODY, "stream": True})
        assert answer.status_code == 200
        events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        error = json.loads(events[-1])["error"]
        assert set(error) == {"message", "type", "param", "code"} and "[DONE]" not in answer.text
        text = {"prompt": ["a", "b"], "n": 2, "stream": True, "temperature": 1}
        answer = httpx.post(server.url + "/v1/completions", json=text)
        assert "error" in json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert server.client.num_in_flight == 0


def test_loading_draining_dead() -> None:
    with running(ready=False) as server:
        for path in ("/health", "/v1/models"):
            answer = httpx.get(server.url + path)
            assert "loading" in check(answer, 503)["message"] and answer.headers["retry-after"] == "1"
        check(httpx.post(server.url + CHAT, json=BODY), 503)
        assert httpx.get(server.url + "/version").status_code == 200
        assert httpx.get(server.url + "/metrics").status_code == 200
    with running() as server:
        assert httpx.get(server.url + "/health").json() == {"status": "ok"}
        server.state.draining = True
        assert "stopping" in check(httpx.get(server.url + "/health"), 503)["message"]
        server.state.draining = False
        server.call(server.client.die)
        assert "ended" in check(httpx.post(server.url + CHAT, json=BODY), 503)["message"]
        check(httpx.get(server.url + "/health"), 503)


def test_engine_dies_with_requests_in_flight() -> None:
    import threading

    with running(FakeClient(step_s=0.02, endless=True)) as server:
        answers: dict[bool, httpx.Response] = {}

        def ask(stream: bool) -> None:
            answers[stream] = httpx.post(server.url + CHAT, json={**BODY, "stream": stream}, timeout=10)

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        while server.client.num_in_flight < 2:
            pass
        import time

        time.sleep(0.1)
        server.call(server.client.die)
        for thread in threads:
            thread.join(5)
    check(answers[False], 503)
    last = answers[True].text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "ServiceUnavailableError"


@pytest.mark.parametrize("method_and_path", [(route.method, route.path) for route in ROUTES] + [("GET", "/nothing")])
def test_every_route_needs_the_key(method_and_path: tuple[str, str]) -> None:
    method, path = method_and_path
    path = path.replace("{name}", "fake")
    with running(keys=("secret", "zweiter-schlüssel")) as server, httpx.Client(base_url=server.url) as http:
        bad: list[dict[str, str]] = [{}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer"}]
        bad += [{"authorization": "Basic secret"}, {"authorization": "secret"}, {"host": "x/health?"}]
        if path not in ("/health", "/ready", "/live", "/ping"):
            for headers in bad:
                for spelling in (path, "/" + path, path.replace("v1", "%761"), path + "?a=/health", path + "#/health"):
                    check(http.request(method, spelling, headers=headers, json=BODY), 401)
            assert http.get(path).headers["www-authenticate"] == "Bearer"
        good = http.request(method, path, headers={"authorization": "Bearer secret"}, json=BODY)
        assert good.status_code != 401
        assert http.request(method, "//health").status_code == 401


def test_log_lines_cannot_be_forged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with running() as server:
        httpx.post(server.url + CHAT, json={**BODY, "model": "x\n2026 INFO forged"})
        httpx.post(server.url + CHAT, json=BODY)
    assert not any("\n" in record.getMessage() for record in caplog.records)


def test_metrics_do_not_grow_with_what_clients_send() -> None:
    with running() as server, httpx.Client(base_url=server.url) as http:
        before = len(http.get("/metrics").text)
        for i in range(50):
            http.request(f"M{i}", f"/path{i}")
            http.post(CHAT, json={**BODY, "model": f"m{i}"})
        assert abs(len(http.get("/metrics").text) - before) < 1000


def test_an_error_in_one_stream_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text is written as the engine's messages are read: what fails there must not reach the neighbours."""
    from quire.server.completions import _TextWriter

    chunks, calls = _TextWriter.chunks, 0

    def failing(self: _TextWriter, delta: object, usage: object) -> bytes:
        nonlocal calls
        if self._call.request.seed == 13:
            calls += 1
            if calls > 4:
                raise ZeroDivisionError
        return chunks(self, delta, usage)  # type: ignore[arg-type]

    monkeypatch.setattr(_TextWriter, "chunks", failing)
    with running(FakeClient(step_s=0.001)) as server, httpx.Client(base_url=server.url, timeout=20) as http:

        async def both() -> list[str]:
            async with httpx.AsyncClient(base_url=server.url, timeout=20) as http:
                bodies = [{"prompt": "x", "stream": True, "max_tokens": 50, "seed": seed} for seed in (13, 14, 15)]
                return [a.text for a in await asyncio.gather(*(http.post("/v1/completions", json=b) for b in bodies))]

        broken, *fine = asyncio.run(both())
        error = json.loads(broken.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        assert error["type"] == "InternalServerError" or error["code"] == 500
        assert "ZeroDivision" not in broken and "[DONE]" not in broken
        assert all(text.endswith("data: [DONE]\n\n") for text in fine)
        assert server.client.num_in_flight == 0 and http.get("/health").status_code == 200
